// Figure: where the runs ended.
function drawFinal() {
  armsFigure({
    id: "fig-final",
    title: "Where they end",
    question: "Do the configurations differ by more than their seeds do?",
    see: "A row a configuration: each seed as a pale dot, their mean as a diamond, and the 95 % interval of that mean as a bar (Student's t over the seeds). Where bars lie apart, other seeds would very likely give the same order.",
    care: "With three seeds the bar is 2.5 times as long as the seeds' standard deviation on either side, with two 9 times: long bars say that there are few seeds, not that models are bad. Bars may overlap a little and the difference still be sure; the summary above states the differences with their own intervals. A configuration with one seed has no bar, and nothing says how far off it may be. The interval is about seeds, not about other texts, sizes or learning rates.",
    measures: Object.fromEntries(finalNames().map((key) => [key, FINALS[key]])),
    arms: (key) => RUNS.map((group) => ({ label: runLabel(group), group: group.colour, ...interval(finalsOf(group, key)),
      values: group.members.map((run) => ({ seed: run.seed, value: FINALS[key].of(run) })).filter(({ value }) => !missing(value)) })),
  });
}
