from tests import goldens


def test_golden_folder_is_not_empty():
    """An absent file skips its test; a folder without any file is a broken set-up and must fail."""
    found = goldens.files("os2d", "*.npz")
    assert found, f"no golden files in {[str(folder / 'os2d') for folder in goldens.search_path()]}"
