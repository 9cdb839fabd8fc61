// Means over seeds and how sure they are.
// t with 97.5 % of Student's distribution below it, for 1, 2, .. degrees of freedom.
const STUDENT = [12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448,
  2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423];
// Fisher's expansion about the normal quantile behind the table.
const student = (freedom) => STUDENT[Math.max(1, Math.floor(freedom)) - 1] ?? 1.959964 + (1.959964 ** 3 + 1.959964) / (4 * freedom);

const meanOf = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const varianceOf = (values) => {
  const mean = meanOf(values);
  return values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1);
};

// {count, mean, half}: mean +- half has 95 % confidence; of one value half is NaN.
function interval(all) {
  const values = all.filter((value) => !missing(value));
  const count = values.length;
  if (!count) return { count, mean: NaN, half: NaN };
  return { count, mean: meanOf(values), half: count < 2 ? NaN : student(count - 1) * Math.sqrt(varianceOf(values) / count) };
}

// Mean of a less mean of b with its interval, variances not presumed equal (Welch).
function difference(a, b) {
  const mean = meanOf(a) - meanOf(b);
  if (a.length < 2 || b.length < 2) return { mean, half: NaN };
  const [u, v] = [varianceOf(a) / a.length, varianceOf(b) / b.length];
  if (u + v === 0) return { mean, half: 0 };
  const freedom = (u + v) ** 2 / (u ** 2 / (a.length - 1) + v ** 2 / (b.length - 1));
  return { mean, half: student(freedom) * Math.sqrt(u + v) };
}

const plusMinus = ({ mean, half }, text) => (missing(mean) ? "–" : missing(half) ? text(mean) : `${text(mean)}\u00a0±\u00a0${text(half)}`);
