// A worker that runs in a hidden frame. Browsers start no Worker from pages that are opened from the disk (file://);
// with this one the site's search works there, too. It must be named as it is: the theme's plug-in "offline" looks for
// the name, and would load one from the network otherwise.
if (location.protocol === "file:") {
  window.IFrameWorker = class IFrameWorker extends EventTarget {
    constructor(address) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.opened = new Promise((resolve) => { this.resolve = resolve; });
      this.frame.addEventListener("load", () => {
        const inside = this.frame.contentWindow;
        inside.postMessage = (data) => {
          const message = new MessageEvent("message", { data });
          this.dispatchEvent(message);
          if (this.onmessage) this.onmessage(message);
        };
        inside.importScripts = (...addresses) => addresses.reduce(
          (before, source) => before.then(() => this.load(source)), Promise.resolve());
        this.load(new URL(address, location).href).then(() => this.resolve(inside));
      }, { once: true });
      const append = () => document.body.append(this.frame);
      document.body ? append() : addEventListener("DOMContentLoaded", append);
    }

    load(source) {
      const page = this.frame.contentDocument;
      return new Promise((resolve, reject) => {
        const script = page.createElement("script");
        script.onload = resolve;
        script.onerror = reject;
        script.src = source;
        page.body.append(script);
      });
    }

    postMessage(data) {
      this.opened.then((inside) => inside.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
  window.Worker = window.IFrameWorker;
}
