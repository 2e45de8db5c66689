// Choosing images: a file that is dropped, pasted or picked, or a sample of the server.

import { getBlob, getJson } from "./api.js";
import { byId, calm, complain, make, roving } from "./dom.js";

const MANY = 12;

const fileName = (path) => path.split("/").at(-1);

export function setUpImages(app) {
  const parts = { slots: byId("slots"), samples: byId("samples"), search: byId("sample-search"), file: byId("file") };
  let slot = 0, samples = [], turn = 0;

  /** Give the server an image and show it; of two requests at once the later one counts. */
  async function take(source) {
    const at = slot, mine = ++turn;
    calm();
    byId("drop").setAttribute("aria-busy", "true");
    try {
      const image = { ...(await getJson("images", source)), source };
      image.name = source.file?.name || source.path || image.name;
      if (mine !== turn) return;
      app.images[at] = image;
      if (twoDates() && at === 0) slot = 1;
      app.slotsChanged();
      app.imagesChanged();
    } catch (error) {
      if (mine === turn) complain(error);
    } finally {
      if (mine === turn) byId("drop").removeAttribute("aria-busy");
    }
  }

  /** Give the server its images once more: it keeps only so many. */
  app.renew = async () => {
    for (const image of app.images) {
      if (image) image.id = (await getJson("images", image.source)).id;
    }
    return app.images.some(Boolean);
  };

  const twoDates = () => Boolean(app.panels[app.tab].dates?.());

  app.slotsChanged = () => {
    const two = twoDates();
    if (!two) slot = 0;
    parts.slots.hidden = !two;
    parts.slots.replaceChildren(...["First date", "Second date"].map((title, number) => {
      const button = make("button", { type: "button", role: "radio", "aria-checked": String(slot === number), tabIndex: slot === number ? 0 : -1 },
        title, make("span", { title: app.images[number]?.name ?? "", textContent: app.images[number]?.name ?? "not chosen" }));
      button.addEventListener("click", () => { slot = number; app.slotsChanged(); parts.slots.children[number].focus(); });
      return button;
    }));
    mark();
  };

  const mark = () => {
    const path = app.images[slot]?.source.path;
    for (const button of parts.samples.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.title === path));
  };

  app.loadSamples = async () => {
    samples = await getJson("samples");
    byId("sample-part").hidden = !samples.length;
    parts.search.hidden = samples.length <= MANY;
    list();
  };

  const pictures = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      pictures.unobserve(target);
      getBlob(`samples/picture?path=${encodeURIComponent(target.dataset.path)}`).then((blob) => {
        const picture = make("img", { alt: "", src: URL.createObjectURL(blob) });
        picture.addEventListener("load", () => URL.revokeObjectURL(picture.src), { once: true });
        target.replaceWith(picture);
      }, () => { /* a sample without a picture still has its name */ });
    }
  }, { rootMargin: "200px" });

  function list() {
    const words = parts.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = samples.filter(({ name }) => words.every((word) => name.toLowerCase().includes(word)));
    const same = new Map();
    for (const { name } of samples) same.set(fileName(name), (same.get(fileName(name)) ?? 0) + 1);
    parts.samples.replaceChildren(...shown.map(({ name }) => {
      const place = make("i", {});
      place.dataset.path = name;
      const button = make("button", { type: "button", title: name, "aria-pressed": "false" }, place, make("span", { textContent: fileName(name) }));
      // Where another sample has the same name, the folder tells them apart.
      if (same.get(fileName(name)) > 1) button.append(make("span", { class: "folder", textContent: name.slice(0, -fileName(name).length) || "./" }));
      button.addEventListener("click", () => take({ path: name }));
      pictures.observe(place);
      return make("li", {}, button);
    }));
    mark();
  }

  parts.search.addEventListener("input", list);
  roving(parts.slots, (button) => button.click());
  byId("choose").addEventListener("click", () => parts.file.click());
  parts.file.addEventListener("change", () => {
    if (parts.file.files[0]) take({ file: parts.file.files[0] });
    parts.file.value = "";
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])][0];
    if (file) take({ file });
  });
  // The whole page takes a file that is dropped, or the browser would open it instead.
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    const file = event.dataTransfer?.files[0];
    if (file) take({ file });
    else complain(new Error("What was dropped is no file; drop an image file."));
  });
}
