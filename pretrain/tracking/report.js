for (const svg of document.querySelectorAll("svg.chart")) {
  const series = JSON.parse(svg.dataset.hover);
  const space = "http://www.w3.org/2000/svg";
  const dots = series.map(() => svg.appendChild(document.createElementNS(space, "circle")));
  const text = svg.appendChild(document.createElementNS(space, "text"));
  text.setAttribute("class", "tick");
  text.setAttribute("text-anchor", "end");
  text.setAttribute("x", 506);
  text.setAttribute("y", 12);
  for (const dot of dots) { dot.setAttribute("class", "cursor"); dot.setAttribute("r", 0); }
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * 520;
    const near = series.map((s) => s.points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
    near.forEach((p, i) => { dots[i].setAttribute("cx", p[0]); dots[i].setAttribute("cy", p[1]); dots[i].setAttribute("r", 4); });
    const names = series.length > 1;
    text.textContent = "step " + near[0][2].toLocaleString("en") + ":  " +
      near.map((p, i) => (names ? series[i].name + " " : "") + p[3]).join(",  ");
  });
  svg.addEventListener("pointerleave", () => {
    text.textContent = "";
    dots.forEach((dot) => dot.setAttribute("r", 0));
  });
}
