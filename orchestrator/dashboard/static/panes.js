// The line between table and charts, which can be moved by pointer and by arrow keys.

const LEAST = 18; // percent of the width for either side

export function splitPanes(splitter, panes) {
  const set = (percent) => {
    const share = Math.max(LEAST, Math.min(100 - LEAST, percent));
    panes.style.setProperty("--split", `${share}%`);
    splitter.setAttribute("aria-valuenow", String(Math.round(share)));
  };
  const now = () => Number(splitter.getAttribute("aria-valuenow") ?? 40);
  splitter.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    splitter.setPointerCapture(event.pointerId);
    const move = (e) => {
      const box = panes.getBoundingClientRect();
      set((100 * (e.clientX - box.left)) / box.width);
    };
    splitter.addEventListener("pointermove", move);
    splitter.addEventListener(
      "pointerup",
      () => splitter.removeEventListener("pointermove", move),
      { once: true },
    );
  });
  splitter.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") set(now() - 3);
    else if (event.key === "ArrowRight") set(now() + 3);
    else return;
    event.preventDefault();
  });
}
