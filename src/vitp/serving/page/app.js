// The page: what is chosen, which tab is open, what the viewers show.

import { askForToken, getJson } from "./api.js";
import { setUpAsk } from "./ask.js";
import { announce, byId, calm, complain, roving, save, stem } from "./dom.js";
import { setUpImages } from "./images.js";
import { setUpLook } from "./look.js";
import { setUpPredict } from "./predict.js";
import { Viewer } from "./viewer.js";

const MOST_PIXELS = 4096;

const app = {
  models: [],
  images: [null, null], // the image, and that of a later date for models of change
  tab: "predict",
  panels: {},
  refresh,
  imagesChanged,
  retried,
  working,
  savePicture,
};

const asked = {
  pick: (x, y, viewer) => app.panels[app.tab].pick?.(x, y, viewer),
  arrow: (dx, dy) => app.panels[app.tab].arrow?.(dx, dy) ?? false,
  moved: (viewer) => {
    for (const other of app.viewers) if (other !== viewer && !other.figure.hidden) other.follow(viewer);
    byId("zoom").textContent = viewer.image ? `${Math.round(viewer.scale * 100)} %` : "";
  },
  divided: (share) => { byId("swipe").value = Math.round(share * 100); showDivider(); },
  failed: complain,
};
app.viewers = ["view-a", "view-b"].map((id) => new Viewer(byId(id), asked));

/** Let the viewers show what the open tab has: its layers, and whether it needs both. */
function refresh() {
  const panel = app.panels[app.tab], [first, second] = app.viewers, [image, later] = app.images;
  const two = Boolean(panel.two?.()), dates = panel.dates?.() ? later : null;
  if (second.figure.hidden === two) {
    second.figure.hidden = !two;
    requestAnimationFrame(() => { first.fit(); second.fit(); });
  }
  if (first.image !== image) first.show(image);
  if (second.image !== (two ? image : null)) {
    second.show(two ? image : null);
    second.follow(first);
  }
  if ((first.later?.image ?? null) !== dates) first.compare(dates);
  byId("swipe-part").hidden = !dates;
  app.viewers.forEach((viewer, number) => {
    viewer.layers = image ? panel.layers(number) : [];
    viewer.canvas.classList.toggle("aim", Boolean(image && panel.pick));
    const caption = viewer.figure.querySelector("figcaption"), text = panel.caption?.(number) ?? "";
    caption.textContent = text;
    caption.hidden = !text;
    const what = image ? `${image.name}, ${image.width} by ${image.height} pixels` : "empty";
    viewer.canvas.setAttribute("aria-label", `${number ? "Second image viewer" : "Image viewer"}: ${text ? `${text}, ` : ""}${what}`);
    viewer.draw();
  });
  const enabled = Boolean(image);
  for (const id of ["zoom-in", "zoom-out", "zoom-fit"]) byId(id).disabled = !enabled;
  byId("view-a").querySelector(".empty").hidden = enabled;
  byId("view-help").textContent = panel.help?.() ?? "Drag or arrow keys move, wheel, pinch or + and − zoom, 0 fits.";
}

function imagesChanged() {
  const [image, later] = app.images, size = (one) => `${one.width} × ${one.height}`;
  byId("stage-title").textContent = image ? `${image.name} · ${size(image)}` : "No image yet";
  byId("stage-title").title = image ? image.name : "";
  if (image) announce(`${image.name}, ${size(image)} pixels${later ? `; second date ${later.name}` : ""}`);
  for (const panel of Object.values(app.panels)) panel.imagesChanged();
  refresh();
}

/** Do something with the images' ids; when the server no longer keeps an image, give it once more. */
async function retried(work) {
  try {
    return await work();
  } catch (error) {
    if (error.status !== 404 || !(await app.renew())) throw error;
    return work();
  }
}

/** Run something that takes a while: its button waits, a failure is shown, an earlier one is put away. */
async function working(button, text, work) {
  calm();
  announce(text);
  const label = button.textContent;
  button.disabled = true;
  button.setAttribute("aria-busy", "true");
  button.textContent = text;
  try {
    return await work();
  } catch (error) {
    complain(error);
    return null;
  } finally {
    button.disabled = false;
    button.removeAttribute("aria-busy");
    button.textContent = label;
  }
}

/** Save what a viewer shows of the whole image, at the image's resolution as far as a canvas can hold it. */
async function savePicture(number, name) {
  const viewer = app.viewers[number];
  const { canvas, scale } = await (viewer.base).whole(MOST_PIXELS);
  const context = canvas.getContext("2d");
  const density = Math.max(0.75, Math.max(canvas.width, canvas.height) / 900);
  const view = { context, place: (x, y) => [x * scale, y * scale], density, scale, image: viewer.image };
  for (const layer of viewer.layers) layer(view);
  save(await canvas.convertToBlob({ type: "image/png" }), `${stem(viewer.image.name)}-${name}.png`);
}

function openTab(name, focus = false) {
  app.tab = name;
  for (const other of ["predict", "ask", "look"]) {
    const tab = byId(`tab-${other}`), open = other === name;
    tab.setAttribute("aria-selected", open);
    tab.tabIndex = open ? 0 : -1;
    byId(other).hidden = !open;
    if (open && focus) tab.focus();
  }
  app.panels[name].opened?.();
  app.slotsChanged();
  refresh();
}

function showDivider() {
  const value = Number(byId("swipe").value);
  byId("swipe-value").textContent = `${value} %`;
}

function setUp() {
  Object.assign(app.panels, { predict: setUpPredict(app), ask: setUpAsk(app), look: setUpLook(app) });
  setUpImages(app);
  for (const name of Object.keys(app.panels)) byId(`tab-${name}`).addEventListener("click", () => openTab(name));
  roving(document.querySelector(".tabs"), (tab) => openTab(tab.id.slice(4)));
  byId("zoom-in").addEventListener("click", () => app.viewers[0].zoom(1.5));
  byId("zoom-out").addEventListener("click", () => app.viewers[0].zoom(1 / 1.5));
  byId("zoom-fit").addEventListener("click", () => app.viewers[0].fit());
  byId("swipe").addEventListener("input", () => { app.viewers[0].divide(Number(byId("swipe").value) / 100); showDivider(); });
  byId("error-close").addEventListener("click", calm);
  byId("token-open").addEventListener("click", () => askForToken(false).then((given) => given && load()));
  addEventListener("keydown", (event) => event.key === "Escape" && calm());
}

async function load() {
  try {
    const [health, models] = await Promise.all([getJson("health"), getJson("models")]);
    app.models = models;
    byId("version").textContent = health.version ?? "";
    for (const panel of Object.values(app.panels)) panel.modelsChanged();
    await app.loadSamples();
    byId("served").textContent = models.length === 1 ? "1 model" : `${models.length} models`;
    const first = ["predict", "ask", "look"].find((name) => app.panels[name].usable());
    openTab(first ?? "predict");
    calm();
  } catch (error) {
    byId("served").textContent = "not connected";
    complain(error);
  }
}

setUp();
openTab("predict");
load();
