// What a mouse can do, a keyboard can: scroll wide things sideways, and unfold the columns of a narrow screen.
(() => {
  const named = [
    [".table-wrapper", "table"],
    [".highlight pre, .cell_output pre, .literal-block-wrapper pre", "code"],
    ["div.math", "formula"],
    ["mjx-container", "formula"],
  ];
  function mark() {
    for (const inline of document.querySelectorAll("span.math mjx-container")) {
      inline.classList.toggle("wide", inline.firstElementChild.getBoundingClientRect().width >
        inline.closest("p, li, td, dd, th, figcaption, h1, h2, h3").clientWidth);
    }
    for (const [selector, name] of named) {
      for (const element of document.querySelectorAll(selector)) {
        const scrolls = element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).overflowX !== "visible";
        if (scrolls) {
          element.setAttribute("tabindex", "0");
          element.setAttribute("role", "group");
          element.setAttribute("aria-label", `${name}, scrolls sideways`);
        } else if (element.getAttribute("role") === "group") {
          for (const attribute of ["tabindex", "role", "aria-label"]) element.removeAttribute(attribute);
        }
      }
    }
  }
  for (const [id, name] of [["__navigation", "All pages"], ["__toc", "This page"]]) {
    for (const icon of document.querySelectorAll(`label[for="${id}"] > .icon`)) {
      Object.entries({ tabindex: "0", role: "button", "aria-label": name }).forEach((pair) => icon.setAttribute(...pair));
      icon.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          document.getElementById(id).click();
        }
      });
    }
  }
  addEventListener("load", () => {
    const ready = window.MathJax?.startup?.promise ?? Promise.resolve();
    ready.then(() => { mark(); document.documentElement.dataset.ready = "true"; });
  });
  addEventListener("resize", mark);
})();
