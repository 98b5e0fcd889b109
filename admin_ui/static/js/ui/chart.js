// Charts over time, drawn by uPlot.
import { html, useEffect, useRef, useState } from '../lib.js';
import { clockTime } from '../format.js';

/** @type {Promise<any> | undefined} */
let library;
const load = () => (library ??= Promise.all([import('../charting.js'), style()]).then(([found]) => found.UPlot));

/** The library's style sheet, fetched with it. */
const style = () => new Promise((done) => {
  const link = document.createElement('link');
  link.rel = 'stylesheet';
  link.href = new URL('../../vendor/uplot.css', import.meta.url).pathname;
  link.onload = link.onerror = done;
  document.head.append(link);
});

/** @param {string} name */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A colour as a canvas takes it, since it does not know `light-dark()`. @param {string} name @param {Element} within */
function drawn(name, within) {
  const probe = document.createElement('i');
  probe.style.color = `var(${name})`;
  within.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found || colour(name);
}

/**
 * @typedef {{label: string, colour: string, values: (number | null)[], area?: boolean}} Line
 * @param {{label: string, at: number[], lines: Line[], format: (value: number | null) => string, height?: number, most?: number}} props
 */
export function Chart({ label, at, lines, format, height = 190, most }) {
  const box = useRef(/** @type {any} */ (null));
  const plot = useRef(/** @type {any} */ (null));
  const [cursor, setCursor] = useState(/** @type {number | null} */ (null));
  const [scheme, setScheme] = useState(0);
  const shape = lines.map((each) => each.label).join('|');
  const data = [at, ...lines.map((each) => each.values)];
  const latest = useRef(data);
  latest.current = data;

  useEffect(() => {
    const changed = () => setScheme((value) => value + 1);
    const media = matchMedia('(prefers-color-scheme: dark)');
    media.addEventListener('change', changed);
    const watcher = new MutationObserver(changed);
    watcher.observe(document.documentElement, { attributeFilter: ['data-theme'] });
    return () => {
      media.removeEventListener('change', changed);
      watcher.disconnect();
    };
  }, []);

  useEffect(() => {
    const within = box.current; // gone from the page before what was begun here has ended
    let gone = false;
    /** @type {ResizeObserver | undefined} */
    let sizes;
    load().then((UPlot) => {
      if (gone) return;
      const faint = drawn('--faint', within);
      const grid = { stroke: drawn('--line', within), width: 1 };
      const axis = { stroke: faint, font: `11.5px ${colour('--font')}`, grid, ticks: { show: false } };
      plot.current = new UPlot(
        {
          width: within.clientWidth,
          height,
          padding: [10, 22, 0, 0],
          legend: { show: false },
          cursor: { points: { size: 7 }, drag: { x: false, y: false } },
          scales: { y: { range: (/** @type {any} */ _, /** @type {number} */ __, /** @type {number} */ high) => [0, most ?? Math.max(high * 1.1, 1e-6)] } },
          axes: [
            { ...axis, size: 26, space: 70, values: (/** @type {any} */ _, /** @type {number[]} */ marks) => marks.map((each) => clockTime(each).slice(0, marks[marks.length - 1] - marks[0] < 600 ? 8 : 5)) },
            { ...axis, size: 58, space: 34, values: (/** @type {any} */ _, /** @type {number[]} */ marks) => marks.map(format) },
          ],
          series: [
            {},
            ...lines.map((each) => {
              const stroke = drawn(each.colour, within);
              return { label: each.label, stroke, width: 1.75, points: { show: false }, fill: each.area ? stroke.replace(/^rgb\((.*)\)$/, 'rgba($1, 0.12)') : undefined };
            }),
          ],
          hooks: { setCursor: [(/** @type {any} */ self) => setCursor(self.cursor.idx ?? null)] },
        },
        latest.current,
        within,
      );
      sizes = new ResizeObserver(() => plot.current?.setSize({ width: within.clientWidth, height }));
      sizes.observe(within);
    });
    return () => {
      gone = true;
      sizes?.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [shape, scheme, height]);

  useEffect(() => {
    plot.current?.setData(data);
  });

  const index = cursor ?? at.length - 1;
  return html`<figure>
    <figcaption class="chart-legend">
      <span class="visually-hidden">${label}</span>
      ${lines.map((each) => html`<span key=${each.label}><i class="dot round" style=${{ background: `var(${each.colour})` }}></i>${each.label} <b>${format(each.values[index] ?? null)}</b></span>`)}
      ${cursor != null && at[index] != null && html`<span class="faint">${clockTime(at[index])}</span>`}
    </figcaption>
    <div class="chart" ref=${box} role="img" aria-label=${`${label}: ${lines.map((each) => `${each.label} ${format(each.values[at.length - 1] ?? null)}`).join(', ')}`}></div>
  </figure>`;
}
