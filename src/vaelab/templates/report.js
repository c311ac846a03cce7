for (const box of document.querySelectorAll("[data-epochs]")) {
  const epochs = box.dataset.epochs.split(","), last = epochs.length - 1;
  const strips = box.querySelectorAll("[data-strip]"), controls = box.querySelector(".controls");
  const [button, slider, output] = ["button", "input", "output"].map((name) => controls.querySelector(name));
  let timer = 0;
  const show = (index) => {
    slider.value = index;
    slider.setAttribute("aria-valuetext", output.value = `epoch ${epochs[index]}`);
    for (const strip of strips) strip.style.objectPosition = `0 ${(100 * index) / last}%`;
  };
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    button.textContent = "Play";
  };
  const play = () => {
    if (+slider.value === last) show(0);
    button.textContent = "Pause";
    timer = setInterval(() => {
      show(+slider.value + 1);
      if (+slider.value === last) stop();
    }, Math.max(110, 2500 / last));
  };
  button.addEventListener("click", () => (timer ? stop() : play()));
  slider.addEventListener("input", () => (stop(), show(+slider.value)));
  controls.hidden = false;
  show(last);
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
    new IntersectionObserver(([entry], watch) => {
      if (!entry.isIntersecting) return;
      watch.disconnect();
      play();
    }, { threshold: 0.9 }).observe(box);
  }
}
for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
  });
}
