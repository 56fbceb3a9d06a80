//! Orders: what people, requests and other platforms want of a platform.

use demi_conductor::{Action, Order, Phase, Time};

use super::Ledger;

impl Ledger {
    /// What is eager is wanted from the beginning.
    pub(super) fn note_beginning(&mut self) {
        for platform in 0..self.platforms.len() {
            if self.platforms[platform].is_wanted {
                self.want(platform, false);
            }
        }
    }

    pub(super) fn note_order(&mut self, now: Time, order: Order, actions: &[Action]) {
        let is_heard = self.phase == Phase::Running;
        self.note_hand(now, order);
        match order {
            Order::Shutdown => {}
            Order::Start { platform } if is_heard => {
                self.platforms[platform as usize].is_isolated = false;
                self.forgive(platform as usize);
                self.want(platform as usize, true);
            }
            Order::Enroll { platform } | Order::Restart { platform } if is_heard => {
                self.forgive(platform as usize);
                self.want(platform as usize, true);
            }
            // What a timer of the same turn still gives it came before.
            Order::Isolate { platform } if is_heard => {
                let is_late = |action: &Action| matches!(action, Action::Dispatch { .. });
                self.platforms[platform as usize].is_isolated = !actions.iter().any(is_late);
            }
            Order::Reload { platform, edition, is_by_hand, .. } => {
                let entry = &mut self.platforms[platform as usize];
                entry.editions.insert(edition);
                if !actions.contains(&Action::Reject { platform, edition }) {
                    entry.is_reloaded_by_hand = is_by_hand;
                }
                if is_heard {
                    self.forgive(platform as usize);
                }
            }
            // It is stopped once those that need it have ended: see `note_state`.
            Order::Start { .. }
            | Order::Enroll { .. }
            | Order::Restart { .. }
            | Order::Isolate { .. }
            | Order::Close { .. }
            | Order::Stop { .. }
            | Order::Retire { .. } => {}
        }
    }

    /// Somebody has a hand in a platform, and in what it needs.
    fn note_hand(&mut self, now: Time, order: Order) {
        let (Order::Start { platform }
        | Order::Stop { platform }
        | Order::Retire { platform }
        | Order::Restart { platform }
        | Order::Reload { platform, .. }
        | Order::Isolate { platform }
        | Order::Close { platform }) = order
        else {
            return;
        };
        let mut open = vec![platform as usize];
        while let Some(platform) = open.pop() {
            self.platforms[platform].ordered_at = Some(now);
            self.platforms[platform].ram.sheds.clear();
            open.extend(self.platforms[platform].needs.iter().copied());
            let needy = (0..self.platforms.len()).filter(|other| {
                let entry = &self.platforms[*other];
                entry.needs.contains(&platform) && entry.ordered_at != Some(now)
            });
            open.extend(needy);
        }
    }

    /// A request or a person wants it, and with it all that it needs.
    pub(super) fn want(&mut self, platform: usize, is_by_hand: bool) {
        let entry = &mut self.platforms[platform];
        entry.is_wanted = true;
        if is_by_hand {
            entry.is_stopped = false;
        }
        for need in entry.needs.clone() {
            self.want(need, is_by_hand);
        }
    }

    /// What it was left alone for may have been mended, and what it needs as well.
    pub(super) fn forgive(&mut self, platform: usize) {
        for slot in self.platforms[platform].slots.clone() {
            self.slots[slot].bad_config = false;
        }
        for need in self.platforms[platform].needs.clone() {
            self.forgive(need);
        }
    }
}
