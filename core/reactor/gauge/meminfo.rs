//! Memory and swap of the whole machine.

use demi_conductor::RamSource;

use super::number;

/// What `/proc/meminfo` says. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meminfo {
    /// All memory.
    pub total: u64,
    /// What the kernel could give out without swapping.
    pub available: u64,
    /// Who says what is available.
    pub source: RamSource,
    /// All swap.
    pub swap_total: u64,
    /// Swap that is not in use.
    pub swap_free: u64,
}

impl Meminfo {
    /// `None` if it says nothing of memory, or what cannot be: none at all, or none in use.
    pub(super) fn parse(text: &str) -> Option<Meminfo> {
        let bytes = |word: &str| number(text, word)?.checked_mul(1024);
        let total = bytes("MemTotal")?;
        let told = bytes("MemAvailable");
        // The cache holds shared memory as well, which cannot be given back.
        let estimate = || {
            let given_back = bytes("Buffers")?.checked_add(bytes("Cached")?)?;
            bytes("MemFree")?.checked_add(given_back.saturating_sub(bytes("Shmem").unwrap_or(0)))
        };
        let available = told.or_else(estimate)?;
        let (swap_total, swap_free) = (bytes("SwapTotal").unwrap_or(0), bytes("SwapFree").unwrap_or(0));
        (available < total).then_some(Meminfo {
            total,
            available,
            source: if told.is_some() { RamSource::MemAvailable } else { RamSource::Estimate },
            swap_total,
            swap_free: swap_free.min(swap_total),
        })
    }

    /// Swap in use.
    pub fn swap_used(&self) -> u64 {
        self.swap_total - self.swap_free
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::recorded;
    use super::super::Reader;
    use super::*;

    #[test]
    fn memory_and_swap_are_read_in_bytes() {
        let memory = Reader::new(&recorded("raspberry-pi-os")).read().meminfo.expect("it is there");
        let expected = Meminfo {
            total: 944_264 * 1024,
            available: 402_176 * 1024,
            source: RamSource::MemAvailable,
            swap_total: 204_796 * 1024,
            swap_free: 180_220 * 1024,
        };
        assert_eq!((memory, memory.swap_used()), (expected, 24_576 * 1024));
    }

    #[test]
    fn a_kernel_that_does_not_say_what_is_available_has_it_estimated() {
        let memory = Reader::new(&recorded("old-kernel")).read().meminfo.expect("it is there");
        assert_eq!(
            (memory.available, memory.source),
            ((60_316 + 18_712 + 81_568 - 10_484) * 1024, RamSource::Estimate)
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for text in [
            "MemTotal: 0 kB\nMemAvailable: 0 kB\n",
            "MemTotal: 100 kB\nMemAvailable: 101 kB\n",
            "MemTotal: 100 kB\nMemAvailable: 100 kB\n",
            "MemTotal: 100 kB\nMemAvailable: -1 kB\nMemFree: 5 kB\n",
            "MemTotal: 100 kB\n",
            "MemAvailable: 100 kB\n",
            "MemTotal: 18446744073709551615 kB\nMemAvailable: 100 kB\n",
            "MemTotal: 100 kB\nMemFree: 18446744073709551615 kB\nBuffers: 1 kB\nCached: 1 kB\n",
        ] {
            assert_eq!(Meminfo::parse(text), None, "{text:?}");
        }
        let swap = Meminfo::parse("MemTotal: 9 kB\nMemAvailable: 0 kB\nSwapTotal: 1 kB\nSwapFree: 5 kB\n");
        assert_eq!(swap.map(|memory| (memory.available, memory.swap_used())), Some((0, 0)), "all used up is possible");
    }
}
