// The library of charts is not checked.
export const UPlot: any;
