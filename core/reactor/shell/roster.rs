//! What the shell keeps of each platform besides its bays: its editions, its chronicle, and what its folder says.

use demi_conductor::config::Platform;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Blueprint;
use crate::chronicle::{Chronicle, Entry};
use crate::mishaps::Mishaps;

/// Most editions of a platform at once. Usually there are one or two; more stay only as long as instances of them run,
/// after reloads that were broken off halfway.
const EDITIONS_MAX: usize = 64;

/// A platform as it was, is or will be: what its instances are started from.
struct Edition {
    number: u32,
    blueprint: Blueprint,
    platform: Platform,
}

/// A platform in the order of the conductor.
pub(crate) struct Listed {
    /// In the order of their numbers; the present one is always among them.
    editions: Vec<Edition>,
    present: u32,
    last: u32,
    pub(crate) chronicle: Chronicle,
    /// What went wrong with its requests and health checks lately.
    pub(crate) mishaps: Mishaps,
    /// Its manifest or executable has changed: the number of the last edition that was made before that was seen.
    changed_after: Option<u32>,
    /// Why what has changed cannot be taken up.
    pub(crate) update_problem: Option<String>,
    /// Its folder is not there any more.
    pub(crate) is_gone: bool,
    /// The edition to which a reload was ordered, as long as the conductor has not said that it began.
    pub(crate) awaits_swap: Option<u32>,
    pub(crate) swaps_done: u64,
    pub(crate) swaps_failed: u64,
    /// Log lines of all its instances that were not kept.
    pub(crate) dropped_lines: u64,
    tools: Option<Box<RawValue>>,
}

/// What is shown of a tool.
#[derive(Deserialize, Serialize)]
struct Tool {
    name: String,
    #[serde(default)]
    description: String,
}

impl Listed {
    /// A platform with its first edition, and what the store remembers of it.
    pub(crate) fn new(blueprint: Blueprint, platform: Platform, history: Vec<Entry>) -> Listed {
        Listed {
            editions: vec![Edition { number: 0, blueprint, platform }],
            present: 0,
            last: 0,
            chronicle: Chronicle::new(history),
            mishaps: Mishaps::default(),
            changed_after: None,
            update_problem: None,
            is_gone: false,
            awaits_swap: None,
            swaps_done: 0,
            swaps_failed: 0,
            dropped_lines: 0,
            tools: None,
        }
    }

    fn edition(&self, number: u32) -> Option<&Edition> {
        self.editions.iter().find(|edition| edition.number == number)
    }

    fn present(&self) -> &Edition {
        self.edition(self.present).expect("the present edition is never dropped")
    }

    /// What an edition is started from.
    pub(super) fn blueprint(&self, edition: u32) -> Option<&Blueprint> {
        self.edition(edition).map(|edition| &edition.blueprint)
    }

    /// As an edition has it.
    pub(super) fn platform_of(&self, edition: u32) -> Option<&Platform> {
        self.edition(edition).map(|edition| &edition.platform)
    }

    /// What the present edition is started from.
    pub(super) fn present_blueprint(&self) -> &Blueprint {
        &self.present().blueprint
    }

    /// As the present edition has it.
    pub(crate) fn platform(&self) -> &Platform {
        &self.present().platform
    }

    pub(crate) fn name(&self) -> &str {
        &self.present().platform.name
    }

    /// Adds an edition that is to prove itself; returns its number. `None` if there are too many.
    pub(super) fn add(&mut self, blueprint: Blueprint, platform: Platform) -> Option<u32> {
        if self.editions.len() >= EDITIONS_MAX {
            return None;
        }
        self.last += 1;
        self.editions.push(Edition { number: self.last, blueprint, platform });
        Some(self.last)
    }

    /// Every instance is of this edition now.
    pub(super) fn adopt(&mut self, number: u32) {
        if self.edition(number).is_none() {
            return;
        }
        self.present = number;
        // One that was made since may be on its way.
        self.editions.retain(|edition| edition.number >= number);
        if self.changed_after.is_some_and(|last| last < number) {
            self.changed_after = None;
            self.update_problem = None;
        }
    }

    /// This edition is not needed any more.
    pub(super) fn reject(&mut self, number: u32) {
        let present = self.present;
        self.editions.retain(|edition| edition.number != number || number == present);
    }

    /// Its manifest or executable is not what it was.
    pub(super) fn note_change(&mut self, problem: Option<String>) {
        self.changed_after = Some(self.last);
        self.update_problem = problem;
    }

    /// Whether something has changed that the present edition does not have.
    pub(crate) fn is_update_waiting(&self) -> bool {
        self.changed_after.is_some()
    }

    /// Whether an edition that has what has changed is there, and has only to take over.
    pub(crate) fn is_update_made(&self) -> bool {
        self.changed_after.is_some_and(|last| self.editions.iter().any(|edition| edition.number > last))
    }

    /// Takes the list of its tools, a JSON array; of each its name and description are kept. Whether it was one.
    pub(crate) fn note_tools(&mut self, tools: &RawValue) -> bool {
        let tools = serde_json::from_str::<Vec<Tool>>(tools.get());
        self.tools = tools.and_then(|tools| serde_json::value::to_raw_value(&tools)).ok();
        self.tools.is_some()
    }

    /// Its tools, if it has told them.
    pub(crate) fn tools(&self) -> Option<&RawValue> {
        self.tools.as_deref()
    }
}

/// What only a restart of Demi can change: each with what it was.
pub(super) fn fixed_differences(was: &Platform, now: &Platform) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |field: &str, was: String, now: String| {
        if was != now {
            found.push(format!("{field} was {was} and is {now}"));
        }
    };
    compare("name", format!("{:?}", was.name), format!("{:?}", now.name));
    compare("protocol", was.host.name().to_owned(), now.host.name().to_owned());
    compare("instances", was.instances().to_string(), now.instances().to_string());
    let list = |names: &[String]| format!("[{}]", names.join(", "));
    compare("needs", list(&was.needs), list(&now.needs));
    compare("behind", list(&was.behind), list(&now.behind));
    compare("health", shown(&was.health), shown(&now.health));
    compare("breaker", shown(&was.breaker), shown(&now.breaker));
    found
}

/// A section of a platform's own, as what it sets.
fn shown(section: &impl serde::Serialize) -> String {
    serde_json::to_string(section).expect("numbers and words always serialise")
}

#[cfg(test)]
mod tests {
    use super::*;
    use demi_conductor::config::{Host, Recovery};

    fn blueprint(platform: &Platform) -> Blueprint {
        crate::start::blueprint(platform, &[], std::path::Path::new("/demi"), std::path::Path::new("/"))
    }

    fn listed() -> Listed {
        let platform = Platform::new("a", Host::Process(1));
        Listed::new(blueprint(&platform), platform, Vec::new())
    }

    fn add(listed: &mut Listed) -> Option<u32> {
        let platform = listed.platform().clone();
        listed.add(blueprint(&platform), platform)
    }

    #[test]
    fn an_edition_that_is_adopted_drops_those_before_and_one_that_is_rejected_only_itself() {
        let mut listed = listed();
        assert_eq!((add(&mut listed), add(&mut listed)), (Some(1), Some(2)));
        listed.reject(1);
        assert!(listed.blueprint(0).is_some() && listed.blueprint(1).is_none() && listed.blueprint(2).is_some());
        listed.adopt(2);
        assert!(listed.blueprint(0).is_none() && listed.blueprint(2).is_some());
        listed.reject(2);
        assert!(listed.blueprint(2).is_some(), "the present edition is never dropped");
        assert_eq!(add(&mut listed), Some(3), "numbers are never given twice");
    }

    #[test]
    fn an_update_waits_until_an_edition_that_was_made_after_it_is_adopted() {
        let mut listed = listed();
        let first = add(&mut listed).expect("there is room");
        listed.note_change(None);
        listed.adopt(first);
        assert!(listed.is_update_waiting(), "it was made before the change");
        let second = add(&mut listed).expect("there is room");
        listed.adopt(second);
        assert!(!listed.is_update_waiting());
    }

    #[test]
    fn an_update_is_made_by_an_edition_after_it_until_that_is_rejected_or_something_changes_again() {
        let mut listed = listed();
        listed.note_change(None);
        assert!(!listed.is_update_made());
        let first = add(&mut listed).expect("there is room");
        assert!(listed.is_update_made());
        listed.note_change(None);
        assert!(!listed.is_update_made(), "it was made before the change");
        let second = add(&mut listed).expect("there is room");
        listed.reject(first);
        assert!(listed.is_update_made());
        listed.reject(second);
        assert!(listed.is_update_waiting() && !listed.is_update_made());
    }

    #[test]
    fn editions_are_bounded() {
        let mut listed = listed();
        let added = std::iter::from_fn(|| add(&mut listed)).count();
        assert_eq!(added, EDITIONS_MAX - 1);
    }

    #[test]
    fn what_only_a_restart_can_change_is_told_with_what_it_was() {
        let was = Platform::new("a", Host::Process(1));
        let mut now = Platform { host: Host::Process(2), needs: vec!["b".to_owned()], ..was.clone() };
        now.settings.insert("x".to_owned(), "y".to_owned());
        assert_eq!(fixed_differences(&was, &now), ["instances was 1 and is 2", "needs was [] and is [b]"]);
        now = Platform { behind: vec!["internet".to_owned()], ..was.clone() };
        now.health.fall = demi_conductor::config::Bounded::new(5);
        now.breaker.recovery = Some(Recovery::Restart);
        let told = [
            "behind was [] and is [internet]",
            r#"health was {} and is {"fall":5}"#,
            r#"breaker was {} and is {"recovery":"Restart"}"#,
        ];
        assert_eq!(fixed_differences(&was, &now), told);
        now = Platform { host: Host::Mcp(1), ..was.clone() };
        assert_eq!(fixed_differences(&was, &now), ["protocol was process and is mcp"]);
    }

    #[test]
    fn of_tools_their_names_and_descriptions_are_kept() {
        let mut listed = listed();
        let raw = |text: &str| RawValue::from_string(text.to_owned()).expect("it is JSON");
        assert!(listed.note_tools(&raw(r#"[{"name":"add","description":"adds","inputSchema":{"type":"object"}}]"#)));
        assert_eq!(listed.tools().map(RawValue::get), Some(r#"[{"name":"add","description":"adds"}]"#));
        assert!(!listed.note_tools(&raw("{}")));
    }
}
