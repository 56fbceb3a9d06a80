//! What `--set` changes: settings of the scaler, and whether and when a platform goes.

use demi::conductor::config::{nearest, Bounded, Model, Scaler};
use demi::traces::format::{Entry, Setup, Told};
use serde_json::Value;

use super::Failure;
use crate::USAGE;

/// What a platform is worth by default.
type Worth = Bounded<1, VALUE_MAX, 100>;
const PRIORITY_MAX: u64 = 1_000;
const VALUE_MAX: u64 = 1_000;
/// What can be set of a platform.
const OF_PLATFORM: [&str; 3] = ["priority", "value", "shed"];
/// Settings that decide nothing once the samples are there.
const WITHOUT_EFFECT: [(&str, &str); 3] = [
    ("ram_total_mb", "a trace has the RAM of the machine that it was recorded on"),
    ("pss", "a trace has what platforms weighed"),
    ("trace_days", "a trace is there"),
];

/// A change of the settings that were recorded.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    pub(super) key: String,
    pub(super) value: Value,
    what: What,
}

#[derive(Clone, Debug, PartialEq)]
enum What {
    /// By the way to it.
    Scaler(Vec<String>),
    Priority(String, u32),
    Value(String, u32),
    Shed(String, bool),
}

/// Reads what was given, and tries it on all settings that were recorded.
pub(super) fn changes(given: &[(String, String)], entries: &[Entry]) -> Result<Vec<Change>, Failure> {
    let setups: Vec<&Setup> = entries
        .iter()
        .filter_map(|entry| match &entry.told {
            Told::Begin(setup) => Some(&**setup),
            Told::Record(_) => None,
        })
        .collect();
    let mut changes = Vec::new();
    for (place, (key, value)) in given.iter().enumerate() {
        if let Some((_, first)) = given[..place].iter().find(|(other, _)| other == key) {
            let text = format!("--set {key}={value}: it is set to {first} already; give one of the two");
            return Err(Failure::new(USAGE, text));
        }
        let change = Change::read(key, value, &setups)
            .map_err(|what| Failure::new(USAGE, format!("--set {key}={value}: {what}")))?;
        changes.push(change);
    }
    Ok(changes)
}

impl Change {
    fn read(key: &str, text: &str, setups: &[&Setup]) -> Result<Change, String> {
        // Names of forecasters stand as they do in the configuration, without quotes.
        let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
        let words: Vec<&str> = key.split('.').collect();
        let what = match words[..] {
            ["scaler", _, ..] => {
                if let Some((_, why)) = WITHOUT_EFFECT.iter().find(|(name, _)| *name == words[1]) {
                    return Err(format!("has no effect here: {why}"));
                }
                What::Scaler(words[1..].iter().map(|word| (*word).to_owned()).collect())
            }
            ["platforms", .., setting] if words.len() >= 3 => {
                // A name may have no dot in it, but nobody should have to know.
                let name = words[1..words.len() - 1].join(".");
                let Some(host) =
                    setups.iter().flat_map(|setup| &setup.platforms).find(|platform| platform.name == name)
                else {
                    return Err(unknown_platform(&name, setups));
                };
                if !host.host.can_be_replaced() {
                    return Err(format!("{name} is hosted {:?}, and never shed", host.host));
                }
                let number = |least: u64, most: u64| match value.as_u64() {
                    Some(number) if (least..=most).contains(&number) => Ok(number as u32),
                    Some(_) | None => Err(format!("{text} is no whole number from {least} to {most}")),
                };
                match setting {
                    "priority" => What::Priority(name, number(0, PRIORITY_MAX)?),
                    "value" => What::Value(name, number(1, VALUE_MAX)?),
                    "shed" => What::Shed(name, value.as_bool().ok_or(format!("{text} is neither true nor false"))?),
                    _ => return Err(format!("of a platform {}", unknown(setting, &OF_PLATFORM))),
                }
            }
            ["scaler"] => return Err("it has many fields; set one of them, as in scaler.shed_percent=75".to_owned()),
            ["platforms", ..] => {
                let fields = OF_PLATFORM.join(", ");
                return Err(format!(
                    "it has several fields; set one of a platform, as in platforms.NAME.shed: {fields}"
                ));
            }
            _ => {
                let near = nearest(words[0], &["scaler", "platforms"])
                    .map_or(String::new(), |near| format!("; did you mean {near}?"));
                let fields = OF_PLATFORM.map(|field| format!("platforms.NAME.{field}")).join(", ");
                return Err(format!("only scaler.FIELD, {fields} can be set{near}"));
            }
        };
        let change = Change { key: key.to_owned(), value, what };
        for setup in setups {
            change.apply(&mut (*setup).clone())?;
        }
        Ok(change)
    }

    /// Changes it. What platforms are not there are not changed.
    pub(super) fn apply(&self, setup: &mut Setup) -> Result<(), String> {
        match &self.what {
            What::Scaler(way) => setup.scaler = changed(&setup.scaler, way, &self.value)?,
            What::Priority(name, priority) => {
                let platforms = setup.platforms.iter_mut().filter(|platform| platform.name == *name);
                platforms.for_each(|platform| platform.priority = *priority);
            }
            What::Value(name, value) => {
                let platforms = setup.platforms.iter_mut().filter(|platform| platform.name == *name);
                platforms.for_each(|platform| platform.value = Some(*value));
            }
            What::Shed(name, shed) => {
                let platforms = setup.platforms.iter_mut().filter(|platform| platform.name == *name);
                platforms.for_each(|platform| platform.shed = *shed);
            }
        }
        Ok(())
    }

    /// What it was, in a setup; `None` if that has no such platform.
    pub(super) fn before(&self, setup: &Setup) -> Option<Value> {
        let platform = |name: &String| setup.platforms.iter().find(|platform| platform.name == *name);
        match &self.what {
            What::Scaler(way) => {
                let scaler = serde_json::to_value(setup.scaler).ok()?;
                way.iter().try_fold(scaler, |value, word| value.get(word).cloned())
            }
            What::Priority(name, _) => Some(platform(name)?.priority.into()),
            What::Value(name, _) => {
                let value = platform(name)?.value.map_or_else(|| Worth::default().value(), u64::from);
                Some(value.into())
            }
            What::Shed(name, _) => Some(platform(name)?.shed.into()),
        }
    }
}

/// Settings of which one is another; that it is in its range is seen to by its type.
fn changed(scaler: &Scaler, way: &[String], value: &Value) -> Result<Scaler, String> {
    let mut whole = serde_json::to_value(scaler).map_err(|error| error.to_string())?;
    let mut place = &mut whole;
    for word in way {
        let known: Vec<String> = match &*place {
            Value::Object(fields) => fields.keys().cloned().collect(),
            _ => return Err(format!("{word:?} is too much: what stands before it is one value")),
        };
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        place = place.get_mut(word).ok_or_else(|| format!("of the scaler {}", unknown(word, &known)))?;
    }
    if place.is_object() && !value.is_object() {
        let fields = place.as_object().into_iter().flat_map(|fields| fields.keys()).cloned().collect::<Vec<_>>();
        return Err(format!("it has several fields; set one of them: {}", fields.join(", ")));
    }
    match &*place {
        Value::Bool(_) if !value.is_boolean() => return Err(format!("{} is neither true nor false", bare(value))),
        Value::Number(_) if value.as_u64().is_none() => {
            *place = u64::MAX.into();
            // The type of the field knows its range, and tells it of what lies outside.
            let outside = serde_json::from_value::<Scaler>(whole).map_err(|error| error.to_string());
            let range =
                outside.err().and_then(|error| Some(error.split_once(" is outside ")?.1.replace(" to ", " and ")));
            let range = range.map(|range| format!(" between {range}")).unwrap_or_default();
            return Err(format!("{} is no whole number{range}", bare(value)));
        }
        Value::String(_) => {
            let (name, known) = (bare(value), Model::ALL.map(|model| format!("{model:?}")));
            let known = known.each_ref().map(String::as_str);
            if !known.contains(&name.as_str()) {
                let remedy = match nearest(&name, &known) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("there are {}", known.join(", ")),
                };
                return Err(format!("no forecaster is named {name}; {remedy}"));
            }
        }
        _ => {}
    }
    *place = value.clone();
    serde_json::from_value(whole).map_err(|error| error.to_string())
}

/// A value as it was given, more or less.
fn bare(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn unknown(name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(near) => format!("no field is named {name:?}; did you mean {near}?"),
        None => format!("no field is named {name:?}; there are {}", known.join(", ")),
    }
}

fn unknown_platform(name: &str, setups: &[&Setup]) -> String {
    let mut known: Vec<&str> =
        setups.iter().flat_map(|setup| &setup.platforms).map(|platform| platform.name.as_str()).collect();
    known.sort_unstable();
    known.dedup();
    match nearest(name, &known) {
        Some(near) => format!("no platform is named {name:?}; did you mean {near:?}?"),
        None => format!("no platform is named {name:?}; recorded are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        let platform = r#"{"name":"voice","host":{"Process":1},"shed":true,"priority":100,"drain_ms":0}"#;
        let inline = r#"{"name":"echo","host":"Inline","shed":false,"priority":400,"drain_ms":0}"#;
        let text =
            format!("demi-trace 1\nbegin {{\"unix_ms\":1000,\"scaler\":{{}},\"platforms\":[{platform},{inline}]}}\n");
        demi::traces::format::read(&text).expect("it is a trace")
    }

    fn read(key: &str, value: &str) -> Result<Setup, String> {
        let entries = entries();
        let changes = changes(&[(key.to_owned(), value.to_owned())], &entries).map_err(|failure| failure.text)?;
        let Told::Begin(setup) = &entries[0].told else { panic!("{entries:?}") };
        let mut setup = (**setup).clone();
        changes[0].apply(&mut setup).map(|()| setup)
    }

    #[test]
    fn what_is_set_is_another_and_the_rest_as_it_was() {
        let setup = read("scaler.shed_percent", "75").expect("it is taken");
        assert_eq!((setup.scaler.shed_percent.value(), setup.scaler.restore_percent.value()), (75, 65));
        assert!(!read("scaler.columns.daily", "false").expect("it is taken").scaler.columns.daily);
        assert_eq!(read("scaler.champion", "Ols").expect("it is taken").scaler.champion.name(), "ols");
        let setup = read("platforms.voice.priority", "7").expect("it is taken");
        assert_eq!((setup.platforms[0].priority, setup.platforms[1].priority), (7, 400));
        assert_eq!(read("platforms.voice.value", "7").expect("it is taken").platforms[0].value, Some(7));
        assert!(!read("platforms.voice.shed", "false").expect("it is taken").platforms[0].shed);
    }

    #[test]
    fn what_a_platform_was_worth_is_told_though_nobody_has_said_it() {
        let entries = entries();
        let given = [("platforms.voice.value".to_owned(), "7".to_owned())];
        let Ok(changes) = changes(&given, &entries) else { panic!("it is taken") };
        let Told::Begin(setup) = &entries[0].told else { panic!("{entries:?}") };
        assert_eq!(changes[0].before(setup), Some(100.into()));
    }

    #[test]
    fn what_is_set_twice_is_refused_with_both_values() {
        let given = ["75", "80"].map(|value| ("scaler.shed_percent".to_owned(), value.to_owned()));
        let Err(failure) = changes(&given, &entries()) else { panic!("it is refused") };
        let told = "--set scaler.shed_percent=80: it is set to 75 already; give one of the two";
        assert_eq!((failure.code, failure.text.as_str()), (USAGE, told));
    }

    #[test]
    fn what_cannot_be_set_is_told_with_the_remedy() {
        for (key, value, remedy) in [
            ("scaler.shed_percent", "101", "101 is outside 2 to 100"),
            ("scaler.shed_percent", "much", "much is no whole number between 2 and 100"),
            ("scaler.shed_percent", "-5", "-5 is no whole number between 2 and 100"),
            ("scaler.shed_percent", "75.5", "75.5 is no whole number between 2 and 100"),
            ("scaler.spike_times", "true", "true is no whole number between 0 and 100"),
            ("scaler.columns.daily", "1", "1 is neither true nor false"),
            ("scaler.enabled", "yes", "yes is neither true nor false"),
            ("scaler.shed_precent", "75", "did you mean shed_percent?"),
            ("scaler.columns", "true", "time"),
            ("scaler.columns.dayly", "true", "did you mean daily?"),
            ("scaler.shed_percent.x", "1", "too much"),
            (
                "scaler.champion",
                "Oracle",
                "no forecaster is named Oracle; there are LastValue, Ewma, Holt, Ols, OlsSeasons",
            ),
            ("scaler.champion", "ols", "no forecaster is named ols; did you mean Ols?"),
            ("scaler.champion", "1", "no forecaster is named 1; "),
            ("scaler", "1", "as in scaler.shed_percent=75"),
            ("platforms", "1", "as in platforms.NAME.shed: priority, value, shed"),
            ("platforms.voice", "1", "as in platforms.NAME.shed: priority, value, shed"),
            ("platforms.voice.value", "0", "0 is no whole number from 1 to 1000"),
            ("platforms.voice.value", "1001", "1 to 1000"),
            ("scaler.ram_total_mb", "100", "RAM of the machine"),
            ("platforms.voce.priority", "1", "did you mean \"voice\"?"),
            ("platforms.voice.priority", "1001", "0 to 1000"),
            ("platforms.voice.shed", "1", "true nor false"),
            ("platforms.voice.name", "x", "there are priority, value, shed"),
            ("platforms.echo.shed", "true", "never shed"),
            ("scalar.shed_percent", "1", "did you mean scaler?"),
            ("http.listen", "1", "can be set"),
        ] {
            let error = read(key, value).expect_err(key);
            assert!(error.contains(remedy) && error.contains(key), "{error}");
        }
    }
}
