// Elements, messages, files to save. Strings of the server only ever become text, never markup.

export const byId = (id) => document.getElementById(id);

/** Return a new element: properties are set, `class` and `data` apart; children are elements or text. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** Say something to readers of the screen; the page shows it elsewhere. */
export function announce(text) {
  byId("status").textContent = text;
}

/** Show the one sentence of a failure, until it is closed or something succeeds. */
export function complain(error) {
  if (error?.name === "AbortError") return;
  byId("error-text").textContent = error?.message ?? String(error);
  byId("error").hidden = false;
}

export function calm() {
  byId("error").hidden = true;
}

export function save(blob, name) {
  const address = URL.createObjectURL(blob);
  const link = make("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** Return a file's name without folder and ending, safe as the beginning of another file's name. */
export function stem(name) {
  return (name || "image").replace(/^.*[/\\]/, "").replace(/\.[^.]*$/, "").replace(/[^\p{L}\p{N}._-]+/gu, "_") || "image";
}

/** Fill a select with names; the choice stays where it can. */
export function fill(select, names, chosen = select.value) {
  select.replaceChildren(...names.map(([value, text]) => make("option", { value, textContent: text })));
  if (names.some(([value]) => value === chosen)) select.value = chosen;
}

/** Show a slider's value beside it, and call back on each change. */
export function slider(id, written, changed) {
  const input = byId(id), output = byId(`${id}-value`);
  const show = () => {
    const text = written(Number(input.value));
    output.textContent = text;
    input.setAttribute("aria-valuetext", text);
  };
  input.addEventListener("input", () => { show(); changed(Number(input.value)); });
  show();
  return { input, show, get value() { return Number(input.value); } };
}

/** Arrow keys, Home and End walk over the buttons of a row of tabs or choices, of which one is in the focus order. */
export function roving(row, choose) {
  row.addEventListener("keydown", (event) => {
    const buttons = [...row.children].filter((button) => !button.hidden && !button.disabled);
    const at = buttons.indexOf(document.activeElement);
    const to = {
      ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1,
    }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    const button = buttons[(to + buttons.length) % buttons.length];
    button.focus();
    choose(button);
  });
}
