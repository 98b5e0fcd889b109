// The library of charts, fetched when the first one is drawn.
export { default as UPlot } from '../vendor/uplot.js';
