// The search runs in a worker, which browsers start for no page that comes from a disk. There, a hidden frame does the
// same work. (Without this file the theme's offline plugin would fetch one for it from elsewhere, under this name.)
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.title = "search";
      document.body.append(frame);
      const inside = frame.contentWindow;
      inside.document.open();
      inside.document.write("<!doctype html><title>search</title>");
      inside.document.close();
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = inside.document.createElement("script");
      script.src = new URL(url, location.href);
      this.ready = new Promise((resolve) => script.addEventListener("load", resolve));
      this.tell = (data) => inside.dispatchEvent(new inside.MessageEvent("message", { data }));
      inside.document.head.append(script);
    }

    postMessage(data) {
      this.ready.then(() => this.tell(data));
    }
  };
}
