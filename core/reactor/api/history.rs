//! `GET /v1/metrics/history`: what a platform did and used, minute by minute or in longer steps.

use serde::Serialize;

use super::json;
use crate::problem::Problem;
use crate::store::Span;

/// Most points of an answer.
const POINTS_MAX: u64 = 2_000;
/// So many points at most when nobody says how long a step is.
const POINTS: u64 = 150;
/// Steps that people like, seconds: of these the shortest is taken that makes few enough points.
const STEPS_S: [u64; 7] = [60, 300, 900, 3_600, 21_600, 86_400, 7 * 86_400];
/// From when on, if nobody says.
const SINCE_S: u64 = 3_600;
const MINUTE_S: u64 = 60;

const EXAMPLE: &str = "?platform=NAME&from=-24h&to=-0s&step=1h";

/// Which part of a platform's past someone wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct History {
    pub(crate) platform: String,
    /// Minutes since 1970; the last is not part of it.
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// Minutes taken together.
    pub(crate) step: u32,
}

#[derive(Serialize)]
struct HistoryPage<'h> {
    platform: &'h str,
    /// Unix seconds.
    from: u64,
    to: u64,
    step_s: u64,
    points: Vec<Point<'h>>,
}

/// The columns of `integration_metrics`.
#[derive(Serialize)]
struct Point<'h> {
    /// When it begins, unix seconds.
    timestamp: u64,
    platform_name: &'h str,
    response_time_ms: Option<f64>,
    response_time_p95_ms: Option<f64>,
    error_count: u32,
    request_count: u32,
    resource_usage_mb: Option<f64>,
}

/// Reads the query of `GET /v1/metrics/history`.
pub(crate) fn read_history(query: &str, unix_s: u64) -> Result<History, Problem> {
    let mut values = [None; 4];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let wrong = |what: &str| Err(Problem::new(400, format!("{name}={value}: {what}; try {EXAMPLE}")));
        match ["platform", "from", "to", "step"].iter().position(|known| *known == name) {
            None => return wrong("there is no such parameter"),
            Some(position) if values[position].is_some() => return wrong("it is given twice"),
            Some(position) => values[position] = Some(value),
        }
    }
    let [platform, from, to, step] = values;
    let Some(platform) = platform.filter(|name| !name.is_empty()) else {
        return Err(Problem::new(400, format!("platform must name a platform; try {EXAMPLE}")));
    };
    let moment = |name: &str, value: Option<&str>, default: u64, now_s: u64| match value {
        None => Ok(default),
        Some(value) => read_moment(value, now_s).ok_or_else(|| {
            let what = "must be unix seconds, or how long ago, such as -90m, -24h or -7d";
            Problem::new(400, format!("{name}={value}: {name} {what}; try {EXAMPLE}"))
        }),
    };
    // The second that has begun is part of what was, and so is its minute.
    let to_s = moment("to", to, unix_s + 1, unix_s + 1)?;
    let from_s = moment("from", from, to_s.saturating_sub(SINCE_S), unix_s)?;
    let (from, to) = (from_s / MINUTE_S, to_s.div_ceil(MINUTE_S));
    if from >= to {
        return Err(Problem::new(400, format!("from must be before to; try {EXAMPLE}")));
    }
    let span_s = (to - from) * MINUTE_S;
    let shortest = |points: u64| STEPS_S.into_iter().find(|step| span_s.div_ceil(*step) <= points);
    let step_s = match step {
        None => shortest(POINTS).unwrap_or(span_s.div_ceil(POINTS).next_multiple_of(MINUTE_S)),
        Some(value) => match read_span(value) {
            Some(step) if step > 0 && step.is_multiple_of(MINUTE_S) => step,
            _ => {
                let what = "step must be whole minutes, as seconds or such as 5m, 1h or 1d";
                return Err(Problem::new(400, format!("step={value}: {what}; try {EXAMPLE}")));
            }
        },
    };
    let points = span_s.div_ceil(step_s);
    if points > POINTS_MAX {
        let enough = shortest(POINTS_MAX).unwrap_or(span_s.div_ceil(POINTS_MAX).next_multiple_of(MINUTE_S));
        return Err(Problem::new(
            400,
            format!(
                "that would be {points} points, and {POINTS_MAX} are the most; ask for step={enough} or a later from"
            ),
        ));
    }
    let minutes = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let platform = platform.to_owned();
    Ok(History { platform, from: minutes(from), to: minutes(to), step: minutes(step_s / MINUTE_S) })
}

/// A moment in unix seconds: as such, or as a span before now with a minus.
pub(super) fn read_moment(value: &str, unix_s: u64) -> Option<u64> {
    match value.strip_prefix('-') {
        Some(ago) => Some(unix_s.saturating_sub(read_span(ago)?)),
        None => read_number(value),
    }
}

/// A span in seconds: a number of them, or of `s`, `m`, `h` or `d`.
pub(super) fn read_span(value: &str) -> Option<u64> {
    let unit = match value.bytes().last()? {
        b's' => 1,
        b'm' => 60,
        b'h' => 3_600,
        b'd' => 86_400,
        _ => return read_number(value),
    };
    read_number(&value[..value.len() - 1])?.checked_mul(unit)
}

fn read_number(value: &str) -> Option<u64> {
    value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok()).flatten()
}

/// The page as JSON.
pub(crate) fn history_json(history: &History, spans: &[Span]) -> Vec<u8> {
    let seconds = |minutes: u32| u64::from(minutes) * MINUTE_S;
    let millis = |micros: u32| (micros > 0).then_some(f64::from(micros) / 1000.0);
    let points = spans.iter().map(|span| Point {
        timestamp: seconds(span.unix_minute),
        platform_name: &history.platform,
        response_time_ms: millis(span.sum.mean_us),
        response_time_p95_ms: millis(span.sum.p95_us),
        error_count: span.sum.errors,
        request_count: span.sum.requests,
        resource_usage_mb: span.sum.memory_kb.map(|memory| (f64::from(memory) / 102.4).round() / 10.0),
    });
    json(&HistoryPage {
        platform: &history.platform,
        from: seconds(history.from),
        to: seconds(history.to),
        step_s: seconds(history.step),
        points: points.collect(),
    })
    .body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Minute;

    const NOW: u64 = 1_700_000_000;

    fn read(query: &str) -> (u64, u64, u64) {
        let history = read_history(query, NOW).unwrap_or_else(|problem| panic!("{query}: {}", problem.body()));
        assert_eq!(history.platform, "echo");
        (history.from.into(), history.to.into(), history.step.into())
    }

    #[test]
    fn moments_are_unix_seconds_or_how_long_ago_and_a_step_fits_the_span() {
        let now = NOW.div_ceil(60);
        assert_eq!(read("platform=echo"), ((NOW - 3_600) / 60, now, 1));
        assert_eq!(read("platform=echo&from=-24h"), ((NOW - 86_400) / 60, now, 15));
        assert_eq!(
            read("platform=echo&from=-2d&to=-1d&step=1h"),
            ((NOW - 172_800) / 60, (NOW - 86_400).div_ceil(60), 60)
        );
        assert_eq!(read("from=0&to=600&step=120&platform=echo"), (0, 10, 2));
        assert_eq!(read("platform=echo&from=-30d").2, 360);
        let (from, to, step) = read("platform=echo&from=0");
        assert!((to - from).div_ceil(step) <= POINTS, "however long: {step}");
    }

    #[test]
    fn the_minute_that_has_just_begun_is_part_of_what_was() {
        for query in ["platform=echo", "platform=echo&from=-1h&to=-0s"] {
            assert_eq!(read_history(query, 6_000).expect("it is right").to, 101, "{query}");
        }
    }

    #[test]
    fn each_wrong_parameter_is_named_with_a_remedy() {
        for (query, told) in [
            ("", "platform must name a platform"),
            ("platform=", "platform must name a platform"),
            ("platform=echo&from=yesterday", "from must be unix seconds, or how long ago"),
            ("platform=echo&to=-1w", "to must be unix seconds"),
            ("platform=echo&step=0", "step must be whole minutes"),
            ("platform=echo&step=90", "step must be whole minutes"),
            ("platform=echo&from=-1h&to=-2h", "from must be before to"),
            ("platform=echo&from=-30d&step=60", "that would be 43201 points, and 2000 are the most; ask for step=3600"),
            ("platform=echo&name=x", "there is no such parameter"),
            ("platform=echo&platform=x", "it is given twice"),
        ] {
            let problem = read_history(query, NOW).expect_err("it is wrong");
            assert!(problem.status() == 400 && problem.body().contains(told), "{query}: {}", problem.body());
        }
        for (query, _) in [("platform=echo&from=-33h&step=60", ()), ("platform=echo&from=-30d&step=3600", ())] {
            assert!(read_history(query, NOW).is_ok(), "{query}");
        }
    }

    #[test]
    fn a_point_has_the_columns_of_the_table_and_nothing_where_nothing_is_known() {
        let history = History { platform: "echo".to_owned(), from: 10, to: 20, step: 5 };
        let sum = Minute { requests: 4, errors: 1, mean_us: 1_500, p95_us: 2_000, memory_kb: Some(10_342) };
        let spans =
            [Span { unix_minute: 10, sum }, Span { unix_minute: 15, sum: Minute { requests: 1, ..Minute::default() } }];
        let page: serde_json::Value = serde_json::from_slice(&history_json(&history, &spans)).expect("it is JSON");
        assert_eq!((&page["from"], &page["to"], &page["step_s"]), (&600.into(), &1200.into(), &300.into()));
        let expected = serde_json::json!({
            "timestamp": 600, "platform_name": "echo", "response_time_ms": 1.5, "response_time_p95_ms": 2.0,
            "error_count": 1, "request_count": 4, "resource_usage_mb": 10.1,
        });
        assert_eq!(page["points"][0], expected);
        assert_eq!(page["points"][1]["response_time_ms"], serde_json::Value::Null);
        assert_eq!(page["points"][1]["resource_usage_mb"], serde_json::Value::Null);
    }
}
