//! What series have counted lately, in steps: exact, whoever else reads their totals meanwhile.

/// Events of one bucket of a sample, or what a counter has gained: 8 bits for the number of the sample, 8 for the bucket,
/// 48 for the gain. A node with a thousand busy workloads has tens of thousands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gain(u64);

const GAIN_BITS: u32 = 48;
const GAIN_MAX: u64 = (1 << GAIN_BITS) - 1;

impl Gain {
    fn key(sample: usize, bucket: usize) -> u64 {
        let place = |number: usize| u64::from(u8::try_from(number).unwrap_or(u8::MAX));
        place(sample) << 8 | place(bucket)
    }

    /// The bucket of a histogram; 0 for a counter.
    pub(crate) fn bucket(self) -> usize {
        usize::from(self.0.to_be_bytes()[1])
    }

    /// At most 2^48 - 1.
    pub(crate) fn gained(self) -> u64 {
        self.0 & GAIN_MAX
    }
}

/// What the samples of a series have gained since the running step began, and in the whole one before it. Takes memory
/// only for what did gain.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    now: Vec<Gain>,
    last: Box<[Gain]>,
}

impl Recent {
    pub(crate) fn add(&mut self, sample: usize, bucket: usize, gained: u64) {
        if gained == 0 {
            return;
        }
        let key = Gain::key(sample, bucket);
        let found = self
            .now
            .binary_search_by_key(&key, |gain| gain.0 >> GAIN_BITS);
        let before = found.map_or(0, |at| self.now[at].gained());
        let gain = Gain(key << GAIN_BITS | before.saturating_add(gained).min(GAIN_MAX));
        match found {
            Ok(at) => self.now[at] = gain,
            Err(at) => self.now.insert(at, gain),
        }
    }

    pub(crate) fn add_buckets(&mut self, sample: usize, buckets: &[u64]) {
        for (bucket, gained) in buckets.iter().enumerate() {
            self.add(sample, bucket, *gained);
        }
    }

    /// The running step is whole, and another begins.
    pub(crate) fn turn(&mut self) {
        self.last = std::mem::take(&mut self.now).into_boxed_slice();
    }

    /// What a sample has gained since the running step began, by its buckets.
    pub(crate) fn now(&self, sample: usize) -> &[Gain] {
        of(&self.now, sample)
    }

    /// The same of the step before.
    pub(crate) fn last(&self, sample: usize) -> &[Gain] {
        of(&self.last, sample)
    }
}

fn of(gains: &[Gain], sample: usize) -> &[Gain] {
    let first = Gain::key(sample, 0) << GAIN_BITS;
    let start = gains.partition_point(|gain| gain.0 < first);
    let length = gains[start..].partition_point(|gain| (gain.0 - first) >> (GAIN_BITS + 8) == 0);
    &gains[start..start + length]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(gains: &[Gain]) -> Vec<(usize, u64)> {
        let pairs = gains.iter().map(|gain| (gain.bucket(), gain.gained()));
        pairs.collect()
    }

    #[test]
    fn gains_add_up_until_the_step_ends() {
        let mut recent = Recent::default();
        recent.add_buckets(1, &[0, 3, 0, 4]);
        recent.add(0, 0, 7);
        recent.add_buckets(1, &[1, 1, 0, 0]);
        recent.add(2, 0, 0);
        assert_eq!(seen(recent.now(0)), [(0, 7)]);
        assert_eq!(seen(recent.now(1)), [(0, 1), (1, 4), (3, 4)]);
        assert_eq!(seen(recent.now(2)), []);
        assert_eq!(seen(recent.last(1)), []);
        recent.turn();
        assert_eq!(seen(recent.now(1)), []);
        assert_eq!(seen(recent.last(1)), [(0, 1), (1, 4), (3, 4)]);
        recent.turn();
        assert_eq!(seen(recent.last(1)), []);
        recent.add(255, 89, u64::MAX);
        recent.add(255, 89, 1);
        assert_eq!(seen(recent.now(255)), [(89, (1 << 48) - 1)]);
    }
}
