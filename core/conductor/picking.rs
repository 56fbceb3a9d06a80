//! Which instance of a platform gets a request: as the platform balances them, among those that take one now.

use crate::balance::{standing, Load, Silence};
use crate::config::Balance;
use crate::time::Time;
use crate::{Conductor, Platform};

/// The part of its draws, in thousandths, that an instance has in the first moments after its return.
const SLOW_START_PERMILLE_MIN: u32 = 100;

impl Conductor {
    /// The instance that gets the next request, as the platform balances them. `avoid` is taken only if nothing else is to
    /// be had.
    pub(crate) fn pick(&mut self, platform: usize, key: Option<u64>, avoid: Option<u32>) -> Option<usize> {
        if !self.platform_admits(platform) {
            return None;
        }
        let best = match (self.platforms[platform].terms.balance, key) {
            (Balance::RoundRobin | Balance::Weighted, _) => self.pick_in_turn(platform, avoid),
            (Balance::Sticky, Some(key)) => self.pick_by_key(platform, key, avoid),
            (Balance::LeastInFlight, _) | (Balance::Sticky, None) => self.pick_of_two(platform, avoid),
        };
        if best.is_none() && self.panics(platform) {
            return self.pick_cut_off(platform, avoid);
        }
        best
    }

    /// Whose turn it is. Those that are silent, or that come back and are spared this time, are passed over if there is
    /// another.
    fn pick_in_turn(&mut self, platform: usize, avoid: Option<u32>) -> Option<usize> {
        let mut turns = std::mem::take(&mut self.platforms[platform].turns);
        let mut picked = None;
        for is_choosy in [true, false] {
            let Platform { first, count, .. } = self.platforms[platform];
            let candidates = (0..count as usize).filter_map(|position| {
                let slot = first as usize + position;
                let takes = avoid != Some(slot as u32) && self.takes_requests(slot);
                let is_well =
                    takes && (!is_choosy || self.load(slot).silence == Silence::NONE && !self.is_spared(slot));
                is_well.then(|| (position, self.weight_of(slot)))
            });
            picked = turns.next(candidates).map(|position| first as usize + position);
            if picked.is_some() {
                break;
            }
        }
        self.platforms[platform].turns = turns;
        picked.or_else(|| avoid.map(|slot| slot as usize).filter(|slot| self.takes_requests(*slot)))
    }

    /// The one that stands best with the key among those that take requests.
    fn pick_by_key(&mut self, platform: usize, key: u64, avoid: Option<u32>) -> Option<usize> {
        let first = self.platforms[platform].first as usize;
        let shares = &self.platforms[platform].shares;
        let takers = self.platforms[platform].slots().filter(|slot| self.takes_requests(*slot));
        let others = takers.filter(|slot| avoid != Some(*slot as u32));
        let best = others.max_by_key(|slot| standing(key, shares[slot - first].identity));
        best.or_else(|| avoid.map(|slot| slot as usize).filter(|slot| self.takes_requests(*slot)))
    }

    /// The better of two drawn at random; if neither takes requests, or the better one is silent, the best of all.
    fn pick_of_two(&mut self, platform: usize, avoid: Option<u32>) -> Option<usize> {
        let first = self.platforms[platform].first as usize;
        let count = u64::from(self.platforms[platform].count);
        if count == 1 {
            return self.takes_requests(first).then_some(first);
        }
        let one = self.random.below(count);
        let other = (one + 1 + self.random.below(count - 1)) % count;
        let drawn = [first + one as usize, first + other as usize];
        let candidates = drawn.map(|slot| avoid != Some(slot as u32) && self.takes_requests(slot));
        if count == 2 && candidates != [true, true] {
            // Nothing to choose: of a child process one of the two is the spare slot.
            let only = drawn.into_iter().zip(candidates).find(|(_, takes)| *takes).map(|(slot, _)| slot);
            return only.or_else(|| avoid.map(|slot| slot as usize).filter(|slot| self.takes_requests(*slot)));
        }
        if candidates == [true, true] {
            // One that comes back is spared some of its draws.
            let spared = drawn.map(|slot| self.is_spared(slot));
            let other = drawn[usize::from(spared[0])];
            if spared[0] != spared[1] && self.load(other).silence == Silence::NONE {
                return Some(other);
            }
        }
        match self.best_of(drawn.into_iter(), avoid) {
            Some((slot, load)) if load.silence == Silence::NONE && candidates == [true, true] => Some(slot),
            Some(_) | None => {
                // From one of them on, so that chance decides between equals.
                let all = (0..count).map(|step| first + ((one + step) % count) as usize);
                let best = self.best_of(all, avoid).map(|(slot, _)| slot);
                best.or_else(|| avoid.map(|slot| slot as usize).filter(|slot| self.takes_requests(*slot)))
            }
        }
    }

    /// The best of those whose breakers are open and that are well otherwise.
    fn pick_cut_off(&mut self, platform: usize, avoid: Option<u32>) -> Option<usize> {
        let (first, count) = (self.platforms[platform].first as usize, u64::from(self.platforms[platform].count));
        // From one of them on, so that chance decides between equals.
        let start = self.random.below(count);
        let all = (0..count).map(|step| first + ((start + step) % count) as usize);
        let open = all.filter(|slot| self.slots[*slot].breaker.is_open() && self.could_take(*slot));
        let rank = |slot: usize| (avoid == Some(slot as u32), self.load(slot));
        let best = open
            .map(|slot| (slot, rank(slot)))
            .min_by(|(_, one), (_, other)| one.0.cmp(&other.0).then(one.1.compare(&other.1)));
        self.platforms[platform].stats.panics += u64::from(best.is_some());
        best.map(|(slot, _)| slot)
    }

    /// Whether an instance that has come back a moment ago is passed over this time: less and less often.
    fn is_spared(&mut self, slot: usize) -> bool {
        let Some(returned_at) = self.slots[slot].returned_at else { return false };
        // An hour at most, so that a thousand times as many fit.
        let ramp_nanos = self.platform_at(slot).care.health.slow_start_ms.value() * 1_000_000;
        let since_nanos = self.now.as_nanos() - returned_at.as_nanos();
        if since_nanos >= ramp_nanos {
            self.slots[slot].returned_at = None;
            return false;
        }
        let permille = (since_nanos * 1000 / ramp_nanos) as u32;
        !self.random.chance(permille.max(SLOW_START_PERMILLE_MIN))
    }

    /// The best instance but this one, of those that do not want to be left alone for now.
    pub(crate) fn pick_other(&self, platform: usize, than: u32) -> Option<usize> {
        let platform = &self.platforms[platform];
        if !platform.breaker.admits() {
            return None;
        }
        self.best_of(platform.slots().filter(|slot| !self.is_deferred(*slot)), Some(than)).map(|(slot, _)| slot)
    }

    /// The instance that a request is given to once more: another than the one that had it last, if that can be.
    pub(crate) fn pick_again(&mut self, platform: usize, avoid: u32) -> Option<usize> {
        if !self.platform_admits(platform) {
            return None;
        }
        let own = avoid as usize;
        let other = self.pick_other(platform, avoid);
        let best = other.or_else(|| (self.takes_requests(own) && !self.is_deferred(own)).then_some(own));
        if best.is_some() || !self.panics(platform) {
            return best;
        }
        self.pick_cut_off(platform, Some(avoid)).filter(|slot| !self.is_deferred(*slot))
    }

    /// Whether it said when to come back, and that is not yet.
    pub(crate) fn is_deferred(&self, slot: usize) -> bool {
        self.slots[slot].deferred_until.is_some_and(|until| until > self.now)
    }

    /// When the first of those that are there, and want not to be asked yet, may be.
    pub(crate) fn deferred_until(&self, platform: usize) -> Option<Time> {
        let is_there = |slot: &usize| self.is_deferred(*slot) && self.slots[*slot].life.is_ready();
        let slots = self.platforms[platform].slots().filter(is_there);
        slots.filter_map(|slot| self.slots[slot].deferred_until).min()
    }

    fn best_of(&self, slots: impl Iterator<Item = usize>, avoid: Option<u32>) -> Option<(usize, Load)> {
        slots
            .filter(|slot| avoid != Some(*slot as u32) && self.takes_requests(*slot))
            .map(|slot| (slot, self.load(slot)))
            .min_by(|(_, one), (_, other)| one.compare(other))
    }

    pub(crate) fn takes_requests(&self, slot: usize) -> bool {
        self.slots[slot].breaker.admits() && self.could_take(slot)
    }

    /// Whether it takes requests, if not now then when it has done with others.
    pub(crate) fn takes_in_turn(&self, slot: usize) -> bool {
        self.slots[slot].breaker.admits() && self.is_in_use(slot)
    }

    /// Whether it would take a request if it were not for its breaker.
    fn could_take(&self, slot: usize) -> bool {
        let entry = &self.slots[slot];
        self.is_in_use(slot) && entry.occupied() < self.platforms[entry.platform as usize].terms.in_flight_max
    }

    /// Whether it is there for requests, whatever its breaker says and however many it has.
    pub(crate) fn is_in_use(&self, slot: usize) -> bool {
        self.is_up(slot) && !self.slots[slot].drains
    }

    /// Whether it is there and well, whether it wants requests or not.
    pub(crate) fn is_up(&self, slot: usize) -> bool {
        let entry = &self.slots[slot];
        entry.life.is_ready() && !entry.is_candidate && entry.health.is_up()
    }

    fn load(&self, slot: usize) -> Load {
        let entry = &self.slots[slot];
        // Answers that flow, for hours perhaps, say nothing of how soon the next will come.
        let waiting = entry.in_flight - entry.flowing;
        let silence = match waiting {
            _ if entry.suspect => Silence::SUSPECT,
            0 => Silence::NONE,
            1.. => Silence::lasting(self.now - entry.progress, entry.usual),
        };
        // Between idle ones chance decides.
        let progress = if waiting == 0 { Time::ZERO } else { entry.progress };
        Load { silence, in_flight: waiting, progress }
    }
}
