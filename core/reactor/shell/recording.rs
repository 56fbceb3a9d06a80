//! What the recorder is told of what happens here, and how its lines get to the clerk.

use demi_conductor::config::Platform;
use demi_conductor::lifecycle::{Reason, State};
use demi_conductor::scaler::Decision;
use demi_conductor::{Conductor, News, PlatformLoad, Sample};
use demi_trace::{Integration, Record};

use super::recorder::{best_state, Moment, Sight};
use super::Shell;
use crate::calls::Origin;
use crate::chronicle::unix_ms;
use crate::handle::PlatformOrder;

/// A platform as a trace has it: nothing of its command, its environment or its settings.
pub(crate) fn integration(platform: &Platform) -> Integration {
    Integration {
        name: platform.name.clone(),
        host: platform.host,
        start: platform.start,
        sleep_after_ms: platform.sleep_after_ms.map(|bound| bound.value()),
        needs: platform.needs.clone(),
        shed: platform.may_be_shed(),
        priority: platform.priority(),
        value: platform.value.map(|value| value.count()),
        drain_ms: platform.drain_ms.value(),
    }
}

fn sight(platform: usize, conductor: &Conductor) -> Sight {
    let PlatformLoad { rss_bytes, running, asked } = conductor.load_of(platform);
    Sight { state: best_state(conductor.states_of(platform)), kb: rss_bytes / 1_000, running, asked }
}

impl Shell {
    fn moment(&self) -> Moment {
        Moment { now: self.now, real: self.now + self.lag, unix_ms: unix_ms() }
    }

    pub(super) fn record_sample(&mut self, sample: &Sample) {
        self.recorder.measured(self.moment(), sample);
    }

    pub(super) fn record_decision(&mut self, decision: &Decision) {
        let record = Record::Decided {
            platform: decision.platform,
            act: decision.act.name().to_owned(),
            ram_permille: decision.figures.ram_permille,
            threshold_percent: decision.figures.threshold_percent,
            is_done: decision.is_done,
        };
        self.recorder.put(self.moment(), &record);
    }

    /// A person, or the host program, has ordered something.
    pub(super) fn record_order(&mut self, platform: u32, order: PlatformOrder, origin: &Origin) {
        let order = match (order, origin) {
            (PlatformOrder::Start, Origin::Client { .. } | Origin::Caller(_)) => "start",
            (PlatformOrder::Stop, Origin::Client { .. } | Origin::Caller(_)) => "stop",
            (PlatformOrder::Restart, Origin::Client { .. } | Origin::Caller(_)) => "restart",
            (PlatformOrder::Isolate, Origin::Client { .. } | Origin::Caller(_)) => "isolate",
            _ => return,
        };
        self.recorder.put(self.moment(), &Record::Ordered { platform, order });
    }

    pub(super) fn record_news(&mut self, platform: u32, news: &News) {
        let News::State { was, reason, .. } = news else { return };
        if let (State::Starting | State::Ready, Reason::Exited(_)) = (was, reason) {
            self.recorder.put(self.moment(), &Record::Died { platform });
        }
        self.recorder.note_change(platform);
    }

    /// A platform was found, or is of another edition.
    pub(super) fn record_setup(&mut self, platform: u32) {
        let integration = integration(self.roster[platform as usize].platform());
        self.recorder.set_up(platform as usize, integration);
    }

    /// Records what has changed, and hands over what has gathered: each minute, and when it is much.
    pub(super) fn record(&mut self, is_minute: bool, conductor: &Conductor) {
        if !self.recorder.is_on() {
            return;
        }
        if is_minute || self.recorder.is_look_due(self.now) {
            let sights = (0..conductor.platform_count()).map(|platform| sight(platform, conductor));
            self.recorder.look(self.moment(), sights);
        }
        while let Some(platform) = self.recorder.next_changed() {
            self.recorder.look_at_one(self.moment(), platform, sight(platform as usize, conductor));
        }
        if is_minute {
            self.recorder.count_requests(self.moment());
        }
        if is_minute || self.recorder.is_ripe() {
            self.hand_over_trace();
        }
    }

    /// Demi ends in order, with all that was stored.
    pub(super) fn record_end(&mut self, conductor: &Conductor) {
        self.record(true, conductor);
        self.recorder.end(self.moment());
        self.hand_over_trace();
    }

    fn hand_over_trace(&mut self) {
        let clerk = self.clerk.as_ref();
        self.recorder.hand_over(|day, text| clerk.is_some_and(|clerk| clerk.record(day, text)));
    }
}
