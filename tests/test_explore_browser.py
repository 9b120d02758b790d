"""The explorer in a real browser: opened, scrolled, drawn on, asked, kept, and given what it can't read."""

import json
import zipfile

import helpers_browser
import nibabel as nib
import numpy as np
import pytest
from helpers_browser import Page, Served

from ctvlm_lib.explore.ask import WITHHELD
from ctvlm_lib.run import PROJECT
from ctvlm_lib.volume import Volume

pytestmark = [pytest.mark.slow, pytest.mark.assets]
CT = "Upload a CT (NIfTI, or DICOM as ZIP)"


def left_sided(orientation: str) -> Volume:
    """Soft tissue in air with one bright block on the patient's left, at the back."""
    hu = np.full((24, 40, 50), -1000, np.float32)
    hu[2:22, 4:36, 5:45] = 40
    hu[6:18, 22:30, 34:42] = 1500
    affine = np.array([[0, 0, 2.0, -50], [0, 2.0, 0, -40], [3.0, 0, 0, 10], [0, 0, 0, 1]])
    return Volume(hu, affine, orientation)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for axes in ("LPS", "RAS"):
        left_sided(axes).save(folder / "scans" / f"left-{axes}.nii.gz")
    (folder / "scans" / "garbage.nii.gz").write_bytes(b"this is no CT")
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory, data, asset):
    helpers_browser.browser_path()
    asset("abdomen_ct/ct.nii.gz")
    home = tmp_path_factory.mktemp("app")
    server = Served("ctvlm_lib", "app", "--no-browser", "--port", "{port}", "--out", str(home), "--data", str(data),
                    log=home / "log.txt")  # fmt: skip
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=helpers_browser.browser_path(),
                                         args=["--no-sandbox", "--no-first-run", *helpers_browser.QUIET])  # fmt: skip
        yield one
        one.close()


@pytest.fixture(scope="module")
def page(browser, served):
    return Page(browser, served.url)


def test_it_opens_on_the_liver_and_asks_no_other_machine(page, served):
    assert "drawn: contour: liver" in page.label()
    assert page.tab.get_by_text("not a medical device").count()
    outside = [url for url in page.asked if not url.startswith((served.url.rsplit("/", 1)[0], "data:", "blob:"))]
    assert all("fontawesome" in url for url in outside)  # named by Voilà's template, refused by the page's own rules
    assert not page.errors


def test_slices_go_by_keys(page):
    page.canvas().focus()
    last = int(page.tab.get_by_label("axial slice", exact=True).get_attribute("max"))
    for key, index in (
        ("Home", 0),
        ("ArrowUp", 1),
        ("PageUp", 11),
        ("PageDown", 1),
        ("End", last),
        ("ArrowDown", last - 1),
    ):
        page.tab.keyboard.press(key)
        page.until("axial", index)
    assert f"slice {last - 1} of 0–{last}" in page.label()


def test_slices_go_by_wheel_and_slider_and_the_planes_are_linked(page):
    at = page.index()
    page.canvas().hover()
    page.tab.mouse.wheel(0, 80)
    page.until("axial", at - 2)
    page.tab.get_by_label("axial slice", exact=True).fill("20")
    page.until("axial", 20)
    before = page.index("sagittal")
    box = page.canvas("coronal").bounding_box()
    page.tab.mouse.click(box["x"] + 0.45 * box["width"], box["y"] + 0.5 * box["height"])
    page.tab.wait_for_function(f"document.querySelector('canvas[data-plane=sagittal]').dataset.index != '{before}'")
    assert page.index() != 20


def test_the_window_goes_by_preset_number_and_drag(page):
    page.choose("window preset", "lung")
    page.until_label("width 1500, level −600")
    page.tab.get_by_label("window width, HU").fill("350")
    page.tab.keyboard.press("Tab")
    page.until_label("width 350, level −600")
    box = page.canvas().bounding_box()
    page.tab.mouse.move(box["x"] + 200, box["y"] + 200)
    page.tab.mouse.down(button="right")
    page.tab.mouse.move(box["x"] + 210, box["y"] + 220)
    page.tab.mouse.up(button="right")
    page.until_label("width 390, level −560")
    page.choose("window preset", "soft tissue")


def test_zoom_pan_and_reset_come_back_to_the_same_picture(page):
    page.canvas().focus()
    page.tab.keyboard.press("Home")
    page.until("axial", 0)
    page.tab.keyboard.press("r")
    whole = page.pixels()
    page.tab.keyboard.press("+")
    page.tab.keyboard.press("Shift+ArrowLeft")
    assert page.pixels() != whole
    page.tab.keyboard.press("r")
    assert page.pixels() == whole


def test_the_caliper_measures_millimetres(page):
    page.press("Caliper")
    box = page.canvas().bounding_box()
    wide, high = 122 * 3.0, 101 * 3.0  # the abdomen's axial slice
    a_mm = min((box["width"] - 44) / wide, (box["height"] - 44) / high)
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.tab.mouse.move(*middle)
    page.tab.mouse.down()
    page.tab.mouse.move(middle[0] + 90, middle[1] - 120)
    page.tab.mouse.up()
    assert float(page.canvas().get_attribute("data-caliper-mm")) == pytest.approx(150 / a_mm, abs=0.6)
    page.press("Crosshair")


def test_a_dual_box_names_its_distractor_and_the_reason(page):
    page.section("Prompt")
    page.press("dual box")
    page.says("Distractor: colon: nearest of 60 structures to liver")
    page.until_label("distractor: colon")
    page.press("contour")
    page.until_label("contour: liver")


def test_structures_are_found_by_their_radlex_term(page):
    page.section("Structures")
    page.tab.get_by_label("Find").fill("RID86")
    options = page.tab.get_by_label("Structures").locator("option")
    page.tab.wait_for_function("document.querySelectorAll('select[multiple] option').length === 1")
    text = options.first.inner_text().replace("\xa0", " ")
    assert "spleen (RID86)" in text and text.endswith("mL")
    page.tab.get_by_label("Structures").select_option(index=0)
    page.until_label("spleen")


def test_every_control_has_a_name(page):
    nameless = []
    for section in ("Case", "Structures", "Outline", "Prompt", "Ask", "Keep"):
        page.section(section)
        page.tab.wait_for_timeout(300)
        nameless += page.tab.evaluate(
            """() => [...document.querySelectorAll("button, input, select, textarea, canvas")]
                .filter((one) => one.offsetParent && one.type !== "hidden")
                .filter((one) => !(one.getAttribute("aria-label") || one.title || one.textContent.trim()
                    || [...(one.labels || [])].some((label) => label.textContent.trim())))
                .map((one) => one.outerHTML.slice(0, 120))"""
        )
    assert nameless == []


def test_what_a_model_says_of_a_real_ct_is_withheld_until_it_is_asked_for(page):
    page.section("Ask")
    page.press("Ask the model")
    page.says(WITHHELD)
    page.says("times as far from the phantoms")
    page.tab.get_by_label("show anyway (real CT)").check()
    page.says("(confidence")


def test_a_phantom_is_asked_with_every_control_and_sensitivity_is_shown(page):
    page.section("Case")
    page.choose("Case", "Phantom patient 2")
    page.says("32×64×64 voxels")
    page.section("Ask")
    page.press("Ask the model")
    page.says("colours swapped")
    page.says("Drawn into the phantom:")
    before = page.pixels()
    page.press("Show what it is sensitive to")
    page.says("Bright: changing the picture there")
    page.tab.wait_for_function(
        "before => document.querySelector('canvas[data-plane=axial]').toDataURL() !== before", arg=before
    )


def test_what_is_kept_can_be_read_again(page, tmp_path):
    page.section("Keep")
    rgb = nib.load(page.download("Prompted CT (RGB NIfTI)", tmp_path))
    lines = nib.load(page.download("Lines (label NIfTI)", tmp_path))
    assert rgb.shape == lines.shape == (64, 64, 32) and rgb.get_data_dtype().fields
    assert set(np.unique(np.asanyarray(lines.dataobj))) == {0, 1}
    with zipfile.ZipFile(page.download("Slices (PNG in a ZIP)", tmp_path)) as packed:
        assert len(packed.namelist()) == 32
    rows = [json.loads(line) for line in page.download("Record (JSON lines)", tmp_path).read_text().splitlines()]
    assert [row["control"] for row in rows][:2] == ["as asked", "prompt removed"] and rows[0]["region"] == "liver"
    assert "phantom-patient-2" in page.download("Page to print (HTML)", tmp_path).name
    view = json.loads(page.download("This view (JSON)", tmp_path).read_text())
    assert view["case"] == "Phantom patient 2" and view["choice"]["region"] == "liver"


@pytest.mark.parametrize("axes", ["LPS", "RAS"])
def test_what_is_on_the_left_stands_on_the_right_of_the_screen(page, data, axes):
    page.section("Case")
    page.upload(CT, data / "scans" / f"left-{axes}.nii.gz")
    page.says(f"file in {axes} axes")
    page.choose("window preset", "soft tissue")
    page.tab.wait_for_timeout(1000)  # the kernel puts the crosshair into the middle of a new CT
    page.tab.get_by_label("axial slice", exact=True).fill("10")
    page.until("axial", 10)
    page.choose("planes", "three, coronal")
    page.tab.get_by_label("coronal slice", exact=True).fill("26")
    page.until("coronal", 26)
    assert page.bright_column("axial") > 0.6 and page.bright_column("coronal") > 0.6
    page.choose("planes", "three, axial")


def test_a_ct_without_masks_is_outlined_by_hand_and_by_keys(page):
    page.section("Outline")
    page.press("Draw box")
    box = page.canvas().bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.tab.mouse.move(*middle)
    page.tab.mouse.down()
    page.tab.mouse.move(middle[0] + 60, middle[1] + 40)
    page.tab.mouse.up()
    page.says("A box on slice 10")
    page.press("Add this region")
    page.says("It is the region asked about now")
    page.until_label("contour: drawn region")
    page.press("Draw polygon")
    page.canvas().focus()
    for moves in ([], ["ArrowRight"] * 6, ["ArrowDown"] * 6):
        for move in moves:
            page.tab.keyboard.press(f"Alt+{move}")
        page.tab.keyboard.press(" ")
    page.tab.keyboard.press("Enter")
    page.says(f"A polygon on slice {page.index()}")
    page.press("Crosshair")


def test_what_cannot_be_read_gets_a_sentence_and_the_page_lives(page, data, tmp_path):
    page.section("Case")
    page.upload(CT, data / "scans" / "garbage.nii.gz")
    page.says("is not a readable NIfTI file")
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK no zip")
    page.upload(CT, broken)
    page.says("The ZIP can't be unpacked")
    page.tab.get_by_label("Own CT").fill("../../etc")
    page.tab.keyboard.press("Tab")
    page.press("Open this path")
    page.says("leads out of the data folder")
    page.canvas().focus()
    page.tab.keyboard.press("Home")
    page.until("axial", 0)


def test_a_zipped_dicom_series_is_opened_without_its_identifiers(page, asset, tmp_path):
    packed = tmp_path / "series.zip"
    with zipfile.ZipFile(packed, "w") as target:
        for file in sorted(asset("ct_dicom/series").iterdir()):
            target.write(file, f"JOHN_DOE/{file.name}")
    page.section("Case")
    page.upload(CT, packed)
    page.says("DICOM series of 20 slices")
    assert "DOE" not in page.tab.content() and "1.3.12" not in page.tab.content()


def test_two_people_at_once_see_their_own_cases(page, browser, served):
    other = Page(browser, served.url)
    assert "contour: liver" in other.label()  # its own start, not the first one's series
    other.section("Case")
    other.choose("Case", "Phantom patient 1")
    other.says("32×64×64 voxels")
    assert page.tab.get_by_text("DICOM series of 20 slices").count()
    other.context.close()


def test_it_works_in_jupyterlab_too(browser, tmp_path, data):
    import nbformat

    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    notebook.cells = [nbformat.v4.new_code_cell("from ctvlm_lib.explore.page import Explorer\nExplorer()")]
    nbformat.write(notebook, tmp_path / "page.ipynb")
    words = ["jupyterlab", "--no-browser", "--allow-root", "--port={port}", f"--ServerApp.root_dir={tmp_path}"]
    lab = Served(*words, "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True",
                 log=tmp_path / "log.txt", path="/lab/tree/page.ipynb", JUPYTER_PREFER_ENV_PATH="1",
                 PYTHONPATH=str(PROJECT))  # fmt: skip
    try:
        page = Page(browser, lab.url, before=lambda tab: tab.locator(".jp-CodeCell .cm-content").first.click(),
                    keys="Shift+Enter")  # fmt: skip
        assert "contour: liver" in page.label()
        page.canvas().focus()
        at = page.index()
        page.tab.keyboard.press("ArrowDown")
        page.until("axial", at - 1)
        page.press("box")
        page.until_label("region: liver")
        page.context.close()
    finally:
        lab.stop()


def test_the_page_cannot_make_the_kernel_run_code(page, data):
    target = data / "written-by-the-page"
    page.tab.evaluate(
        """async (target) => {
            const config = JSON.parse(document.getElementById("jupyter-config-data").textContent);
            const path = `/api/kernels/${config.kernelId}/channels?session_id=x`;
            const socket = new WebSocket(`ws://${location.host}${path}`);
            await new Promise((done) => { socket.onopen = done; });
            const send = (type, content) => socket.send(JSON.stringify({
                header: {msg_id: type, msg_type: type, session: "x", version: "5.3", username: "", date: ""},
                parent_header: {}, metadata: {}, channel: "shell", buffers: [], content,
            }));
            send("execute_request", {code: `open(${JSON.stringify(target)}, "w").write("x")`, silent: false});
            const answered = new Promise((done) => { socket.onmessage = ({data}) => {
                if (JSON.parse(data).header.msg_type === "kernel_info_reply") done(); }; });
            send("kernel_info_request", {});
            await answered; // the way to the kernel is open, and what was sent before has been passed over
        }""",
        str(target),
    )
    assert not target.exists()
