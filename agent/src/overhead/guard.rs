//! When something is shed, and when it comes back. Knows neither clock nor kernel: it is told what was taken, sample by
//! sample, and says what to do.

/// Samples over the budget, one after the other, before something is shed. Each further step takes as many.
const OVER: u32 = 4;

/// Calm samples, one after the other, before something comes back.
const CALM: u32 = 5;

/// The same at most, after it came back in vain time and again: an hour, if samples are a minute apart.
const CALM_MAX: u32 = 60;

/// A probe that takes less of the budget than this is left alone: to shed it would help nobody.
const LEAST: f64 = 0.1;

/// What can be shed of a probe, in the order in which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// Its slow events, which nobody's numbers depend on.
    Exemplars,
    /// Most of the time: it is attached for a part of it.
    Sampling,
    /// All of it.
    Off,
}

impl Step {
    /// All of them, in their order.
    pub(crate) const ALL: [Self; 3] = [Self::Exemplars, Self::Sampling, Self::Off];

    /// The name in labels.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Exemplars => "exemplars",
            Self::Sampling => "sampling",
            Self::Off => "off",
        }
    }
}

/// What a probe took in a sample.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Load {
    /// Of the time of all CPUs, 1 being all of it.
    pub(crate) ratio: f64,
    /// The part of the sample's time for which it was attached.
    pub(crate) attached: f64,
    /// What could be shed of it.
    pub(crate) steps: Vec<Step>,
}

/// What to do about a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing.
    Keep,
    /// Shed this of a probe, which is named by its place.
    Shed(usize, Step),
    /// Take it back.
    Restore(usize, Step),
    /// It takes too much, and nothing is left that would help.
    Exhausted,
}

/// What is shed, and what samples were like.
#[derive(Debug)]
pub(crate) struct Guard {
    over: u32,
    calm: u32,
    /// Calm samples that the next to come back takes.
    wait: u32,
    /// Samples since something came back, until it has held for as long as it was waited for.
    trial: Option<u32>,
    /// In the order in which it was.
    shed: Vec<(usize, Step)>,
}

impl Guard {
    pub(crate) fn new() -> Self {
        Self {
            over: 0,
            calm: 0,
            wait: CALM,
            trial: None,
            shed: Vec::new(),
        }
    }

    /// The last step that is in force of a probe.
    pub(crate) fn step(&self, probe: usize) -> Option<Step> {
        let steps = self.shed.iter().filter(|(other, _)| *other == probe);
        steps.map(|(_, step)| *step).max()
    }

    /// Whether this is shed of a probe.
    pub(crate) fn is_shed(&self, probe: usize, step: Step) -> bool {
        self.shed.contains(&(probe, step))
    }

    /// Takes in a sample: the budget, what the agent took of it by itself, and what each probe did.
    pub(crate) fn sample(&mut self, budget: f64, agent: f64, loads: &[Load]) -> Decision {
        self.trial = self.trial.map(|samples| samples + 1);
        if self.trial.is_some_and(|samples| samples >= self.wait) {
            (self.trial, self.wait) = (None, CALM);
        }
        let programs: f64 = loads.iter().map(|load| load.ratio).sum();
        let room = budget - agent;
        if programs > room {
            (self.over, self.calm) = (self.over + 1, 0);
            if self.over < OVER {
                return Decision::Keep;
            }
            let Some((probe, step)) = self.next(budget, programs - room, loads) else {
                return Decision::Exhausted;
            };
            self.force(probe, step);
            return Decision::Shed(probe, step);
        }
        self.over = 0;
        let Some(place) = self.fits(room, programs, loads) else {
            self.calm = 0;
            return Decision::Keep;
        };
        self.calm += 1;
        if self.calm < self.wait {
            return Decision::Keep;
        }
        let (probe, step) = self.shed.remove(place);
        self.calm = 0;
        self.trial = Some(0);
        Decision::Restore(probe, step)
    }

    /// What could come back: the last that was shed and that is known to fit. What a probe would take that is off nobody
    /// knows, so one is tried when there is nothing else; or it would keep all others from coming back.
    fn fits(&self, room: f64, programs: f64, loads: &[Load]) -> Option<usize> {
        if room <= 0.0 || programs > room / 2.0 {
            return None;
        }
        let last_of_its_probe =
            |(_, (probe, step)): &(usize, &(usize, Step))| self.step(*probe) == Some(*step);
        let shed = self.shed.iter().enumerate().rev();
        let mut shed = shed.filter(last_of_its_probe);
        let known = shed.clone().find(|(_, (probe, step))| match step {
            Step::Exemplars => true,
            Step::Sampling => loads.get(*probe).is_some_and(|load| {
                load.attached > 0.0 && programs - load.ratio + load.ratio / load.attached <= room
            }),
            Step::Off => false,
        });
        let unknown = || shed.find(|(_, (_, step))| *step == Step::Off);
        known.or_else(unknown).map(|(place, _)| place)
    }

    /// What is to be shed next: the least that is lost first, of the probe that takes most. Where one alone takes as much
    /// as is too much, those that take less are left alone, for without them it would still be too much.
    fn next(&self, budget: f64, excess: f64, loads: &[Load]) -> Option<(usize, Step)> {
        let mut dearest: Vec<_> = loads.iter().enumerate().collect();
        dearest.sort_by(|(_, one), (_, other)| other.ratio.total_cmp(&one.ratio));
        dearest.retain(|(probe, load)| {
            load.ratio >= LEAST * budget
                && load.steps.iter().any(|step| self.is_left(*probe, *step))
        });
        if dearest.iter().any(|(_, load)| load.ratio >= excess) {
            dearest.retain(|(_, load)| load.ratio >= excess);
        }
        Step::ALL.into_iter().find_map(|step| {
            let mut dearest = dearest.iter();
            let (probe, _) = dearest
                .find(|(probe, load)| self.is_left(*probe, step) && load.steps.contains(&step))?;
            Some((*probe, step))
        })
    }

    /// Whether a probe still has this to shed.
    fn is_left(&self, probe: usize, step: Step) -> bool {
        self.step(probe).is_none_or(|last| last < step)
    }

    /// Notes that this is shed, whatever samples say.
    pub(crate) fn force(&mut self, probe: usize, step: Step) {
        (self.over, self.calm) = (0, 0);
        if self.trial.take().is_some() {
            self.wait = (2 * self.wait).min(CALM_MAX);
        }
        if !self.is_shed(probe, step) {
            self.shed.push((probe, step));
        }
    }

    /// Time went by that nobody has seen: what was before says nothing of now.
    pub(crate) fn gap(&mut self) {
        (self.over, self.calm) = (0, 0);
    }

    /// Notes that others have changed what is shed: of these probes nothing is any more.
    pub(crate) fn forget(&mut self, is_gone: impl Fn(usize) -> bool) {
        self.shed.retain(|(probe, _)| !is_gone(*probe));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: f64 = 0.01;
    const TCP: usize = 0;
    const DISK: usize = 1;
    const GPU: usize = 2;

    fn load(ratio: f64, steps: &[Step]) -> Load {
        Load {
            ratio,
            attached: 1.0,
            steps: steps.to_vec(),
        }
    }

    /// Loads of the three, with all that can be shed of them.
    fn loads(tcp: f64, disk: f64, gpu: f64) -> [Load; 3] {
        [
            load(tcp, &Step::ALL),
            load(disk, &Step::ALL),
            load(gpu, &[Step::Off]),
        ]
    }

    /// The decisions about as many samples that are all the same, but for those to keep things as they are.
    fn decisions(guard: &mut Guard, samples: u32, loads: &[Load]) -> Vec<(u32, Decision)> {
        let samples = (1..=samples).map(|number| (number, guard.sample(BUDGET, 0.001, loads)));
        samples
            .filter(|(_, decision)| *decision != Decision::Keep)
            .collect()
    }

    #[test]
    fn steps_come_in_order_and_each_takes_samples_of_its_own() {
        let mut guard = Guard::new();
        assert_eq!(
            decisions(&mut guard, 13, &loads(0.02, 0.0, 0.0)),
            [
                (4, Decision::Shed(TCP, Step::Exemplars)),
                (8, Decision::Shed(TCP, Step::Sampling)),
                (12, Decision::Shed(TCP, Step::Off)),
            ]
        );
        assert_eq!(guard.step(TCP), Some(Step::Off));
        assert!(guard.is_shed(TCP, Step::Exemplars));
        assert_eq!(guard.step(DISK), None);
    }

    #[test]
    fn one_sample_within_the_budget_begins_the_count_anew() {
        let mut guard = Guard::new();
        let (over, within) = (loads(0.0091, 0.0, 0.0), loads(0.0089, 0.0, 0.0));
        for _ in 0..100 {
            assert_eq!(decisions(&mut guard, 3, &over), []);
            assert_eq!(decisions(&mut guard, 1, &within), []);
        }
        // At the budget it is not over it.
        let border = loads(BUDGET - 0.001, 0.0, 0.0);
        assert_eq!(decisions(&mut guard, 100, &border), []);
    }

    #[test]
    fn the_dearest_is_first_and_what_takes_little_is_left_alone() {
        let mut guard = Guard::new();
        assert_eq!(
            decisions(&mut guard, 24, &loads(0.004, 0.006, 0.0009)),
            [
                (4, Decision::Shed(DISK, Step::Exemplars)),
                (8, Decision::Shed(TCP, Step::Exemplars)),
                (12, Decision::Shed(DISK, Step::Sampling)),
                (16, Decision::Shed(TCP, Step::Sampling)),
                (20, Decision::Shed(DISK, Step::Off)),
                (24, Decision::Shed(TCP, Step::Off)),
            ]
        );
        // What is left takes too much, and the gpu probe has too small a part in it.
        assert_eq!(
            guard.sample(BUDGET, 0.02, &loads(0.0, 0.0, 0.0009)),
            Decision::Keep
        );
        for _ in 0..2 {
            guard.sample(BUDGET, 0.02, &loads(0.0, 0.0, 0.0009));
        }
        for _ in 0..3 {
            let decision = guard.sample(BUDGET, 0.02, &loads(0.0, 0.0, 0.0009));
            assert_eq!(decision, Decision::Exhausted);
        }
    }

    /// A probe that takes little stays whole beside one that takes all.
    #[test]
    fn those_that_would_not_help_are_left_alone() {
        let mut guard = Guard::new();
        assert_eq!(
            decisions(&mut guard, 4, &loads(0.0015, 0.0, 0.05)),
            [(4, Decision::Shed(GPU, Step::Off))]
        );
        let mut guard = Guard::new();
        assert_eq!(
            decisions(&mut guard, 12, &loads(0.02, 0.0015, 0.0)),
            [
                (4, Decision::Shed(TCP, Step::Exemplars)),
                (8, Decision::Shed(TCP, Step::Sampling)),
                (12, Decision::Shed(TCP, Step::Off)),
            ]
        );
        // None is enough alone: all have their part.
        let mut guard = Guard::new();
        assert_eq!(
            decisions(&mut guard, 8, &loads(0.011, 0.011, 0.0)),
            [
                (4, Decision::Shed(TCP, Step::Exemplars)),
                (8, Decision::Shed(DISK, Step::Exemplars)),
            ]
        );
    }

    /// One that is off, and would take too much again, keeps no other from coming back.
    #[test]
    fn what_is_known_to_fit_comes_back_before_what_is_not() {
        let mut guard = Guard::new();
        guard.force(TCP, Step::Exemplars);
        guard.force(TCP, Step::Sampling);
        guard.force(GPU, Step::Off);
        let mut calm = loads(0.0001, 0.0, 0.0);
        calm[TCP].attached = 0.125;
        assert_eq!(
            decisions(&mut guard, 5, &calm),
            [(5, Decision::Restore(TCP, Step::Sampling))]
        );
        let calm = loads(0.0008, 0.0, 0.0);
        assert_eq!(
            decisions(&mut guard, 10, &calm),
            [
                (5, Decision::Restore(TCP, Step::Exemplars)),
                (10, Decision::Restore(GPU, Step::Off)),
            ]
        );
    }

    #[test]
    fn a_probe_that_has_no_part_to_shed_goes_as_a_whole() {
        let mut guard = Guard::new();
        assert_eq!(
            decisions(&mut guard, 5, &loads(0.0, 0.0, 0.05)),
            [(4, Decision::Shed(GPU, Step::Off))]
        );
    }

    #[test]
    fn what_was_shed_last_comes_back_first_once_it_is_calm() {
        let mut guard = Guard::new();
        decisions(&mut guard, 12, &loads(0.02, 0.0, 0.0));
        assert_eq!(
            decisions(&mut guard, 20, &loads(0.0, 0.0, 0.0)),
            [
                (5, Decision::Restore(TCP, Step::Off)),
                (10, Decision::Restore(TCP, Step::Sampling)),
                (15, Decision::Restore(TCP, Step::Exemplars)),
            ]
        );
        assert_eq!(guard.step(TCP), None);
    }

    #[test]
    fn between_half_and_all_of_it_nothing_moves() {
        let mut guard = Guard::new();
        decisions(&mut guard, 12, &loads(0.02, 0.0, 0.0));
        // The agent takes a tenth, so the programs may have 0.009.
        for disk in [0.0046, 0.009] {
            assert_eq!(decisions(&mut guard, 100, &loads(0.0, disk, 0.0)), []);
        }
        assert_eq!(
            decisions(&mut guard, 5, &loads(0.0, 0.0045, 0.0)),
            [(5, Decision::Restore(TCP, Step::Off))]
        );
    }

    #[test]
    fn a_sampled_probe_comes_back_when_all_of_it_fits() {
        let mut guard = Guard::new();
        decisions(&mut guard, 8, &loads(0.02, 0.0, 0.0));
        let sampled = |ratio| {
            let mut loads = loads(ratio, 0.0, 0.0);
            loads[TCP].attached = 0.125;
            loads
        };
        // Eight times that is 0.0096.
        assert_eq!(decisions(&mut guard, 100, &sampled(0.0012)), []);
        assert_eq!(
            decisions(&mut guard, 5, &sampled(0.0011)),
            [(5, Decision::Restore(TCP, Step::Sampling))]
        );
    }

    #[test]
    fn what_comes_back_in_vain_waits_for_twice_as_long_up_to_an_hour() {
        let mut guard = Guard::new();
        let (busy, calm) = (loads(0.0, 0.0, 0.05), loads(0.0, 0.0, 0.0));
        decisions(&mut guard, 4, &busy);
        for wait in [5, 10, 20, 40, 60, 60] {
            assert_eq!(
                decisions(&mut guard, wait, &calm),
                [(wait, Decision::Restore(GPU, Step::Off))]
            );
            assert_eq!(
                decisions(&mut guard, 4, &busy),
                [(4, Decision::Shed(GPU, Step::Off))]
            );
        }
        // One that holds for as long makes good for it.
        decisions(&mut guard, 60, &calm);
        assert_eq!(decisions(&mut guard, 60, &calm), []);
        decisions(&mut guard, 4, &busy);
        assert_eq!(
            decisions(&mut guard, 5, &calm),
            [(5, Decision::Restore(GPU, Step::Off))]
        );
    }

    #[test]
    fn an_agent_that_takes_all_of_it_brings_nothing_back() {
        let mut guard = Guard::new();
        decisions(&mut guard, 4, &loads(0.0, 0.0, 0.05));
        let calm = loads(0.0, 0.0, 0.0);
        for _ in 0..100 {
            assert_eq!(guard.sample(BUDGET, BUDGET, &calm), Decision::Keep);
        }
    }

    #[test]
    fn a_gap_begins_the_counts_anew() {
        let mut guard = Guard::new();
        let (busy, calm) = (loads(0.0, 0.0, 0.05), loads(0.0, 0.0, 0.0));
        decisions(&mut guard, 3, &busy);
        guard.gap();
        assert_eq!(decisions(&mut guard, 3, &busy), []);
        decisions(&mut guard, 1, &busy);
        decisions(&mut guard, 4, &calm);
        guard.gap();
        assert_eq!(decisions(&mut guard, 4, &calm), []);
        assert_eq!(decisions(&mut guard, 1, &calm).len(), 1);
    }

    #[test]
    fn what_others_have_changed_is_forgotten() {
        let mut guard = Guard::new();
        decisions(&mut guard, 8, &loads(0.02, 0.0, 0.0));
        guard.forget(|probe| probe == TCP);
        assert_eq!(guard.step(TCP), None);
        assert_eq!(decisions(&mut guard, 50, &loads(0.0, 0.0, 0.0)), []);
    }

    #[test]
    fn what_the_kernel_refuses_waits_for_longer_each_time() {
        let mut guard = Guard::new();
        let calm = loads(0.0, 0.0, 0.0);
        guard.force(TCP, Step::Off);
        for wait in [5, 10, 20] {
            assert_eq!(
                decisions(&mut guard, wait, &calm),
                [(wait, Decision::Restore(TCP, Step::Off))]
            );
            guard.force(TCP, Step::Off);
        }
    }
}
