//! Writes what a replay does as a Demi would have recorded it that ran then.

use demi_conductor::scaler::Decision;
use demi_conductor::{Instance, Sample};
use demi_trace::{Ram, Record, Writer, STATES};

use super::{place_of, Machine};
use crate::replay::course::Book;
use crate::replay::record::{Happening, Run};

/// A trace that grows.
#[derive(Default)]
pub(in crate::replay) struct Log {
    writer: Writer,
    /// By platform: what was last told of its weight, kB, and how many ran.
    told: Vec<(u64, u32)>,
    pub(in crate::replay) text: String,
}

/// Lives a run through, and returns the trace of that.
pub(in crate::replay) fn live(run: &Run, bases: &[f64], book: &mut Book<'_>) -> String {
    let mut machine = Machine::new(run, bases, book);
    let mut log = Log::default();
    log.writer.begin(machine.now, &run.setup, &mut log.text);
    machine.log = Some(log);
    machine.live();
    machine.log.take().map(|log| log.text).unwrap_or_default()
}

impl Machine<'_, '_, '_> {
    fn log(&mut self, record: &Record) {
        if let Some(log) = &mut self.log {
            log.writer.put(self.now, record, &mut log.text);
        }
    }

    /// What weighs something else than was told last.
    pub(super) fn log_weights(&mut self) {
        for platform in 0..self.routes.len() {
            let bodies = self.slots.iter().filter(|slot| slot.platform == platform).filter_map(|slot| slot.body);
            let (kb, running) = bodies.fold((0.0, 0), |(kb, count), body| (kb + body.weight_kb(), count + 1));
            let weight = (kb as u64, running);
            let Some(log) = &mut self.log else { return };
            log.told.resize(self.routes.len(), (0, 0));
            if std::mem::replace(&mut log.told[platform], weight) != weight {
                self.log(&Record::Weighed { platform: platform as u32, kb: weight.0, running });
            }
        }
    }

    pub(super) fn log_sample(&mut self, sample: &Sample) {
        self.log_weights();
        let [total_kb, free_kb] = [sample.ram_total, sample.ram_available].map(|bytes| bytes / 1_000);
        let ram = Ram { total_kb, used_kb: total_kb - free_kb, narrowest_kb: None };
        self.log(&Record::Measured(ram));
    }

    pub(super) fn log_state(&mut self, instance: Instance) {
        let platform = self.slots[instance.slot as usize].platform;
        let slots = self.slots.iter().filter(|slot| slot.platform == platform);
        let place = slots.map(|slot| place_of(slot.state)).min().unwrap_or(usize::MAX);
        if let Some(state) = STATES.get(place) {
            self.log(&Record::State { platform: platform as u32, state });
        }
    }

    pub(super) fn log_decision(&mut self, decision: &Decision) {
        let (act, figures) = (decision.act.name().to_owned(), decision.figures);
        let (ram_permille, threshold_percent) = (figures.ram_permille, figures.threshold_percent);
        let (platform, is_done) = (decision.platform, decision.is_done);
        self.log(&Record::Decided { platform, act, ram_permille, threshold_percent, is_done });
    }

    pub(super) fn log_happening(&mut self, happening: &Happening) {
        let record = match happening {
            Happening::Asked { platform, worth } => {
                Record::Asked { platform: *platform as u32, requests: u64::from(*worth) }
            }
            Happening::Ordered { platform, order } => Record::Ordered { platform: *platform as u32, order },
            _ => return,
        };
        self.log(&record);
    }
}
