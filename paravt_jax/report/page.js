// Theme switch, and the values under the pointer. The page is whole without it.
document.getElementById('theme').onclick = () => {
  const root = document.documentElement, dark = matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = (root.dataset.theme || (dark ? 'dark' : 'light')) === 'dark' ? 'light' : 'dark';
};
const text = v => v === null ? '–' : String(v);
for (const svg of document.querySelectorAll('svg[data-hover]')) {
  const data = JSON.parse(svg.dataset.hover), tip = svg.parentNode.querySelector('.tip'), cursor = svg.querySelector('.cursor');
  svg.onpointermove = event => {
    const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    let best = 0;
    data.x.forEach((x, i) => { if (Math.abs(x - at) < Math.abs(data.x[best] - at)) best = i; });
    cursor.setAttribute('x1', data.x[best]); cursor.setAttribute('x2', data.x[best]); cursor.style.visibility = 'visible';
    tip.replaceChildren(`step ${data.steps[best]}`, ...data.series.flatMap(s => {
      const dot = document.createElement('span'); dot.className = 'dot'; dot.style.background = s.color;
      return [document.createElement('br'), dot, `${s.name} ${text(s.y[best])}`];
    }));
    tip.style.display = 'block';
    const card = svg.parentNode.getBoundingClientRect(), inside = data.x[best] / svg.viewBox.baseVal.width * box.width;
    const left = box.left - card.left + inside;
    tip.style.top = (box.top - card.top + 4) + 'px';
    tip.style.left = (inside > box.width / 2 ? left - tip.offsetWidth - 10 : left + 10) + 'px';
  };
  svg.onpointerleave = () => { cursor.style.visibility = 'hidden'; tip.style.display = 'none'; };
}
