// What changes between two texts, line by line: the longest common subsequence, so that as few lines as possible are marked.

// Beyond it the table would be felt in the browser; the middle is then shown as replaced whole.
const TABLE_MAX = 1_000_000;

/** [{sign: " " | "-" | "+", line}]: without "+" it reads as `before`, without "-" as `after`. */
export function diffLines(before, after) {
  const [old, now] = [before.split("\n"), after.split("\n")];
  let head = 0;
  while (head < old.length && head < now.length && old[head] === now[head]) head += 1;
  let tail = 0;
  const most = Math.min(old.length, now.length) - head;
  while (tail < most && old[old.length - 1 - tail] === now[now.length - 1 - tail]) tail += 1;
  const mark = (sign, lines) => lines.map((line) => ({ sign, line }));
  return [
    ...mark(" ", old.slice(0, head)),
    ...diffMiddle(old.slice(head, old.length - tail), now.slice(head, now.length - tail)),
    ...mark(" ", old.slice(old.length - tail)),
  ];
}

function diffMiddle(old, now) {
  const marks = [];
  let [i, j] = [0, 0];
  const isTooLarge = old.length * now.length > TABLE_MAX;
  const common = isTooLarge ? null : measureCommon(old, now);
  while (i < old.length || j < now.length) {
    if (i < old.length && j < now.length && old[i] === now[j] && !isTooLarge) {
      marks.push({ sign: " ", line: old[i] });
      i += 1;
      j += 1;
    } else if (i < old.length && (j === now.length || isTooLarge || common[i + 1][j] >= common[i][j + 1])) {
      marks.push({ sign: "-", line: old[i] });
      i += 1;
    } else {
      marks.push({ sign: "+", line: now[j] });
      j += 1;
    }
  }
  return marks;
}

/** common[i][j]: how many lines the rests from i and from j have in common, in order. */
function measureCommon(old, now) {
  const common = Array.from({ length: old.length + 1 }, () => new Uint32Array(now.length + 1));
  for (let i = old.length - 1; i >= 0; i -= 1) {
    for (let j = now.length - 1; j >= 0; j -= 1) {
      const isSame = old[i] === now[j];
      common[i][j] = isSame ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
    }
  }
  return common;
}
