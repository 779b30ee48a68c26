"use strict";
const config = { responsive: true, displaylogo: false, displayModeBar: false };
const read = (id) => JSON.parse(document.getElementById(id).textContent);

for (const chart of document.querySelectorAll(".chart")) {
  const figure = read(chart.dataset.figure);
  Plotly.newPlot(chart, figure.data, figure.layout, config);
}

// One slider moves the picture, the text and the cursor in all rows of the timeline.
for (const episode of document.querySelectorAll(".episode")) {
  const { steps, texts, pictures, last } = read(episode.dataset.steps);
  const chart = episode.querySelector(".chart");
  const slider = episode.querySelector("input");
  const image = episode.querySelector("img");
  const readout = episode.querySelector(".readout");
  const button = episode.querySelector("button");
  let waiting = false;

  const show = () => {
    const position = Number(slider.value);
    if (image) image.src = pictures[position];
    readout.textContent = texts[position];
    slider.setAttribute("aria-valuetext", texts[position].split("\n")[0]);
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const step = Math.min(steps[Number(slider.value)], last);
      Plotly.relayout(chart, { "shapes[0].x0": step, "shapes[0].x1": step });
    });
  };
  slider.addEventListener("input", show);

  chart.on("plotly_click", (event) => {
    const step = event.points[0].x;
    slider.value = steps.reduce((best, own, i) => (Math.abs(own - step) < Math.abs(steps[best] - step) ? i : best), 0);
    show();
  });

  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  };
  button.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (slider.value === slider.max) slider.value = 0;
    button.textContent = "Pause";
    timer = setInterval(() => {
      slider.stepUp();
      show();
      if (slider.value === slider.max) stop();
    }, 100);
  });
}
