// Images as a map in which area is probability: with every answer the wrong ones shrink.

/**
 * Squarified treemap (Bruls, Huizing, van Wijk, 2000).
 * @param {number[]} weights above 0, largest first
 * @param {number} width @param {number} height
 * @returns {{x: number, y: number, width: number, height: number}[]} one rectangle per weight
 */
export function treemap(weights, width, height) {
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const areas = weights.map((weight) => (weight / total) * width * height);
  const made = [];
  let [x, y, w, h] = [0, 0, width, height];
  let row = [];
  /** The worst ratio of sides in a row along a side. */
  const worst = (some, side) => {
    const sum = some.reduce((a, b) => a + b, 0);
    return Math.max((side * side * some[0]) / (sum * sum), (sum * sum) / (side * side * some[some.length - 1]));
  };
  const lay = () => {
    const sum = row.reduce((a, b) => a + b, 0);
    const beside = w >= h; // the row stands at the left, or lies at the top
    const depth = sum / (beside ? h : w);
    let along = 0;
    for (const area of row) {
      const length = area / depth;
      made.push(beside ? { x, y: y + along, width: depth, height: length } : { x: x + along, y, width: length, height: depth });
      along += length;
    }
    if (beside) [x, w] = [x + depth, w - depth];
    else [y, h] = [y + depth, h - depth];
    row = [];
  };
  for (const area of areas) {
    const side = Math.min(w, h);
    if (row.length && worst([...row, area], side) > worst(row, side)) lay();
    row.push(area);
  }
  if (row.length) lay();
  return made;
}
