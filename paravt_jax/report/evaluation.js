// Filters: values of one kind widen, kinds narrow; the choice stands in the address, so that a link shows the same samples.
const samples = [...document.querySelectorAll('.sample')], bar = document.querySelector('.filters');
if (bar) {
  const groups = [...bar.querySelectorAll('fieldset[data-of]')], words = document.getElementById('words');
  const chosen = group => [...group.querySelectorAll('[aria-pressed=true]')].map(button => button.dataset.value);
  const show = () => {
    const wanted = groups.map(group => [group.dataset.of, chosen(group)]).filter(pair => pair[1].length);
    const text = words.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const sample of samples) {
      const says = text.length ? sample.querySelector('summary').textContent.toLowerCase() : '';
      sample.hidden = !(wanted.every(([name, values]) => values.includes(sample.dataset[name])) && text.every(word => says.includes(word)));
      count += !sample.hidden;
    }
    document.getElementById('shown').textContent = `${count.toLocaleString('en')} of ${samples.length.toLocaleString('en')}`;
    document.getElementById('none').hidden = count > 0;
    const address = new URLSearchParams(wanted.flatMap(([name, values]) => values.map(value => [name, value])));
    if (text.length) address.set('text', text.join(' '));
    try { history.replaceState(null, '', '#' + address); } catch { /* a page inside another one may not */ }
  };
  const said = new URLSearchParams(location.hash.slice(1));
  for (const group of groups) for (const button of group.querySelectorAll('button')) {
    button.setAttribute('aria-pressed', said.getAll(group.dataset.of).includes(button.dataset.value));
    button.onclick = () => { button.setAttribute('aria-pressed', button.getAttribute('aria-pressed') !== 'true'); show(); };
  }
  words.value = said.get('text') || '';
  words.oninput = show;
  document.getElementById('all').onclick = event => {
    const shown = samples.filter(sample => !sample.hidden), open = shown.some(sample => !sample.open);
    for (const sample of shown) sample.open = open;
    event.target.textContent = open ? 'close all shown' : 'open all shown';
  };
  show();
}
