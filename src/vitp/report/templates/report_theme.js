(() => {
  // Before the first paint, so that a dark page does not flash white.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const set = (isDark) => { document.documentElement.dataset.theme = isDark ? "dark" : "light"; };
  set(dark.matches);
  dark.addEventListener("change", (event) => set(event.matches));
  let before = null;
  addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; set(false); });
  addEventListener("afterprint", () => { if (before) document.documentElement.dataset.theme = before; });
})();
