#![allow(clippy::unwrap_used)]

use super::letters::{LETTER_FILES, LISTED_BYTES_MAX, PURGED_MAX};
use super::*;
#[path = "fixture.rs"]
mod fixture;
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory of its own for each test, removed at its end.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("demi-store-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub(super) fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    /// A child that another test has just forked holds the lock with us until it has become another program.
    pub(super) fn open(&self) -> Store {
        let began = std::time::Instant::now();
        loop {
            match Store::open(&self.data(), &settings(1000)) {
                Err(StoreError::Held { .. }) if began.elapsed() < std::time::Duration::from_secs(30) => {
                    std::thread::yield_now();
                }
                opened => return opened.unwrap(),
            }
        }
    }

    fn refusal(&self) -> StoreError {
        Store::open(&self.data(), &settings(1000)).unwrap_err()
    }

    pub(super) fn set_aside(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.data()).unwrap().map(|e| e.unwrap().path());
        entries.filter(|p| p.to_string_lossy().contains("db.damaged-")).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const ALL: LetterFilter =
    LetterFilter { platform: None, route: None, reason: None, from_unix_ms: None, until_unix_ms: None };

/// A small cache, and so many dead letters at most.
pub(super) fn settings(dead_letters_max: u64) -> Settings {
    use demi_conductor::config::Bounded;
    let cache_bytes = Bounded::new(64 * 1024).unwrap();
    let dead_letters_max = Bounded::new(dead_letters_max).unwrap();
    Settings { cache_bytes, dead_letters_max, ..Settings::default() }
}

fn letter(body: impl Into<Vec<u8>>) -> DeadLetter {
    DeadLetter {
        buried_at_unix_ms: 1_760_000_000_123,
        platform: "discord".into(),
        reason: "no answer in 5 s — gave up".into(),
        attempts: 7,
        from: "android".into(),
        kind: "message".into(),
        method: "POST".into(),
        target: "/v1/messages?x=1".into(),
        content_type: String::new(),
        body: body.into(),
        route: "routes[2]".into(),
        first_error: "no answer".into(),
        ..DeadLetter::default()
    }
}

pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn a_letter_comes_back_as_it_was_encoded() {
    for body in [vec![], b"hello".to_vec(), vec![0xff, 0, 0x80], vec![7; 100_000]] {
        for number in [0, 127, 128, u64::from(u32::MAX), u64::MAX] {
            let letter = DeadLetter { buried_at_unix_ms: number, attempts: u32::MAX, ..letter(body.clone()) };
            assert_eq!(DeadLetter::decode(&letter.encode()), Some(letter));
        }
    }
}

#[test]
fn a_truncated_lengthened_or_garbled_letter_is_refused() {
    let encoded = letter("hello").encode();
    for end in 0..encoded.len() {
        assert_eq!(DeadLetter::decode(&encoded[..end]), None, "cut at {end}");
    }
    assert_eq!(DeadLetter::decode(&[&encoded[..], &[0]].concat()), None);
    assert_eq!(DeadLetter::decode(&[2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), None);
    let mut seed = 1u64;
    for _ in 0..20_000 {
        let garbage: Vec<u8> = (0..seed % 64)
            .map(|i| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                if i == 0 {
                    DeadLetter::VERSION
                } else {
                    (seed >> 56) as u8
                }
            })
            .collect();
        let _ = DeadLetter::decode(&garbage);
        seed = seed.wrapping_add(1);
    }
}

#[test]
fn ids_go_on_after_a_restart_and_short_and_long_letters_are_kept() {
    let scratch = Scratch::new();
    let (short, long) = (letter("hello"), letter(vec![0xfe; 1_000_000]));
    let store = scratch.open();
    assert_eq!(store.dead_letters(), 0);
    assert_eq!((store.bury(&short).unwrap(), store.bury(&long).unwrap()), (1, 2));
    drop(store);
    let store = scratch.open();
    assert_eq!(store.dead_letters(), 2);
    assert_eq!(store.bury(&short).unwrap(), 3);
    let letters = vec![(1, short.clone()), (2, long), (3, short)];
    assert_eq!(store.list(&ALL, 0, 9).unwrap(), LetterPage { letters, next: None });
}

#[test]
fn an_id_is_not_given_again_when_its_letter_is_gone() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.bury(&letter("a")).unwrap();
    store.bury(&letter("b")).unwrap();
    store.letters.remove(2u64.to_be_bytes()).unwrap();
    drop(store);
    assert_eq!(scratch.open().bury(&letter("c")).unwrap(), 3);
}

#[test]
fn a_list_goes_through_all_letters_in_order_page_by_page() {
    let scratch = Scratch::new();
    let store = scratch.open();
    for i in 1..=50u64 {
        store.bury(&letter(i.to_string().repeat(if i % 10 == 0 { 2000 } else { 1 }))).unwrap();
    }
    let (mut seen, mut after) = (Vec::new(), 0);
    loop {
        let page = store.list(&ALL, after, 7).unwrap();
        assert!(page.letters.len() <= 7);
        seen.extend(page.letters.into_iter().map(|(id, _)| id));
        let Some(next) = page.next else { break };
        assert_eq!(seen.last(), Some(&next));
        after = next;
    }
    assert_eq!(seen, (1..=50).collect::<Vec<_>>());
    for (after, next) in [(43, None), (42, Some(49)), (50, None), (u64::MAX, None)] {
        assert_eq!(store.list(&ALL, after, 7).unwrap().next, next, "after {after}");
    }
    assert!(store.list(&ALL, 50, 7).unwrap().letters.is_empty());
}

#[test]
fn a_list_of_long_letters_ends_early_and_says_where_to_go_on() {
    let scratch = Scratch::new();
    let store = scratch.open();
    for _ in 0..5 {
        store.bury(&letter(vec![1; LISTED_BYTES_MAX / 2])).unwrap();
    }
    let pages = [(0, 2, Some(2)), (2, 2, Some(4)), (4, 1, None)];
    for (after, count, next) in pages {
        let page = store.list(&ALL, after, 500).unwrap();
        assert_eq!((page.letters.len(), page.next), (count, next), "after {after}");
    }
}

#[test]
fn at_the_maximum_a_letter_is_refused_and_none_is_lost() {
    let scratch = Scratch::new();
    let store = Store::open(&scratch.data(), &settings(2)).unwrap();
    store.bury(&letter("a")).unwrap();
    store.bury(&letter("b")).unwrap();
    let refusal = store.bury(&letter("c")).unwrap_err();
    assert!(matches!(refusal, StoreError::Full { buried: 2, max: 2 }));
    assert!(refusal.to_string().contains("`store.dead_letters_max`"));
    assert_eq!((store.dead_letters(), store.list(&ALL, 0, 9).unwrap().letters.len()), (2, 2));
}

#[test]
fn what_was_buried_is_in_the_files_while_the_store_still_lives() {
    let scratch = Scratch::new();
    let store = scratch.open();
    for i in 0..40 {
        store.bury(&letter(vec![i; 400])).unwrap();
    }
    store.bury(&letter(vec![1; 5000])).unwrap();
    store.flush().unwrap();
    // As kill -9 would leave them: nothing was dropped.
    let killed = Scratch::new();
    copy(&scratch.data(), &killed.data());
    let after = killed.open();
    assert_eq!(after.dead_letters(), 41);
    assert_eq!(after.list(&ALL, 0, 100).unwrap(), store.list(&ALL, 0, 100).unwrap());
}

#[test]
fn a_second_store_is_told_who_holds_the_directory() {
    let scratch = Scratch::new();
    let first = scratch.open();
    let refusal = scratch.refusal();
    let own = std::process::id();
    assert!(matches!(&refusal, StoreError::Held { pid: Some(pid), name: Some(_), .. } if *pid == own), "{refusal}");
    let told = refusal.to_string();
    let start = format!("data directory {} is held by process {own} (", scratch.data().display());
    assert!(told.starts_with(&start), "{told}");
    assert!(told.ends_with("); stop it or set `store.path` to another directory"), "{told}");
    drop(first);
    scratch.open();
}

#[test]
fn a_lock_that_outlives_its_holder_for_a_moment_is_waited_for() {
    let scratch = Scratch::new();
    drop(scratch.open());
    let lock = fs::OpenOptions::new().write(true).open(scratch.data().join("demi.lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    // No process has this number.
    lock.set_len(0).unwrap();
    fs::write(scratch.data().join("demi.lock"), "999999999\n").unwrap();
    let mut held = Some(lock);
    let mut rests = 0;
    let taken = take_lock(&scratch.data(), || {
        rests += 1;
        held = held.take().filter(|_| rests < 3);
    });
    assert!(taken.is_ok() && rests >= 3, "after {rests} tries");
}

#[test]
fn a_directory_made_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    let _store = scratch.open();
    assert_eq!(fs::metadata(scratch.data()).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_file_in_the_place_of_the_directory_or_its_parent_is_named() {
    let scratch = Scratch::new();
    fs::write(scratch.data(), "").unwrap();
    assert!(matches!(scratch.refusal(), StoreError::NotADirectory { .. }));
    let below = Store::open(&scratch.data().join("deeper"), &settings(1)).unwrap_err();
    assert!(matches!(below, StoreError::NotADirectory { .. }), "{below}");
}

#[test]
fn each_error_of_the_disk_has_its_remedy() {
    use rustix::io::Errno;
    for (errno, remedy) in [
        (Errno::ACCESS, "no permission to write /x; make it belong"),
        (Errno::PERM, "no permission to write /x; make it belong"),
        (Errno::ROFS, "/x is on a read-only file system; mount it writable"),
        (Errno::NOSPC, "no space left to write /x; free some"),
        (Errno::DQUOT, "no space left to write /x; free some"),
        (Errno::IO, "check the disk"),
    ] {
        let told = StoreError::from_sled(Path::new("/x"), sled::Error::Io(errno.into())).to_string();
        assert!(told.contains(remedy), "{told}");
    }
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.bury(&letter("a")).unwrap();
    store.db.open_tree("meta").unwrap().insert("schema", &7u32.to_be_bytes()).unwrap();
    drop(store);
    for _ in 0..2 {
        let refusal = scratch.refusal();
        assert!(matches!(&refusal, StoreError::Newer { found: 7, known: SCHEMA, path } if *path == scratch.data()));
        assert!(refusal.to_string().contains("has schema 7, this demi knows up to 3; use a newer demi"));
    }
    assert!(scratch.set_aside().is_empty());
}

#[test]
fn a_database_of_another_segment_size_is_refused_and_left_alone() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.data()).unwrap();
    drop(sled::Config::new().path(scratch.data().join("db")).segment_size(64 * 1024).open().unwrap());
    assert!(matches!(scratch.refusal(), StoreError::Foreign { .. }));
    assert!(scratch.set_aside().is_empty());
}

#[test]
fn a_damaged_database_is_set_aside_and_a_new_one_started() {
    // The log itself has a test of its own: sled repairs some of what is done to it.
    let wreck = |scratch: &Scratch, name: &str| {
        let db = scratch.data().join("db");
        let entries = fs::read_dir(&db).unwrap().map(|e| e.unwrap().path());
        let file = entries.into_iter().find(|p| p.file_name().unwrap().to_string_lossy().starts_with(name)).unwrap();
        let length = fs::metadata(&file).unwrap().len() as usize;
        fs::write(&file, vec![0xa5; length]).unwrap();
    };
    for name in ["conf", "snap."] {
        let scratch = Scratch::new();
        for _ in 0..2 {
            let store = scratch.open();
            for i in 0..40 {
                store.bury(&letter(vec![i; 900])).unwrap();
            }
        }
        wreck(&scratch, name);
        let store = scratch.open();
        assert_eq!(store.dead_letters(), 0, "{name}");
        assert_eq!(store.bury(&letter("new")).unwrap(), 1);
        assert_eq!(scratch.set_aside().len(), 1, "{name}");
    }
}

#[test]
// What sled does not report, here letters at the damaged place or after it, cannot be reported by us.
fn a_log_overwritten_anywhere_never_panics_and_never_gives_a_wrong_letter() {
    let scratch = Scratch::new();
    for _ in 0..2 {
        let store = scratch.open();
        for i in 0..60u8 {
            store.bury(&letter(vec![i; 900])).unwrap();
        }
    }
    let log = fs::read(scratch.data().join("db/db")).unwrap();
    for part in 0..12 {
        let wrecked = Scratch::new();
        copy(&scratch.data(), &wrecked.data());
        let mut bytes = log.clone();
        let from = bytes.len() * part / 12;
        let to = bytes.len().min(from + 5000);
        bytes[from..to].fill(0xa5);
        fs::write(wrecked.data().join("db/db"), bytes).unwrap();
        let store = wrecked.open();
        for id in 1..=120u64 {
            for (found, text) in store.list(&ALL, id - 1, 1).map_or_else(|_| Vec::new(), |page| page.letters) {
                assert_eq!(text, letter(vec![((found - 1) % 60) as u8; 900]));
            }
        }
        let _ = store.list(&ALL, 0, 200);
        let _ = store.bury(&letter("new"));
    }
}

#[test]
fn what_a_plugin_put_is_there_after_a_restart_and_is_its_own() {
    let scratch = Scratch::new();
    let long: Vec<u8> = (0..64 * 1024).map(|number| b'a' + (number % 26) as u8).collect();
    let store = scratch.open();
    assert_eq!(store.plugin_get("weather", "last").unwrap(), None);
    store.plugin_put("weather", "last", Some(b"1")).unwrap();
    store.plugin_put("weather", "last", Some(&long)).unwrap();
    store.plugin_put("weather", "las", Some(b"\"shorter\"")).unwrap();
    store.plugin_put("weathe", "last", Some(b"2")).unwrap();
    store.plugin_put("weather", "gone", Some(&long)).unwrap();
    store.plugin_put("weather", "gone", None).unwrap();
    store.plugin_put("weather", "never", None).unwrap();
    drop(store);
    let store = scratch.open();
    let get = |plugin: &str, key: &str| store.plugin_get(plugin, key).unwrap();
    assert!(get("weather", "last") == Some(long));
    assert_eq!(get("weather", "las"), Some(b"\"shorter\"".to_vec()));
    assert_eq!(get("weathe", "last"), Some(b"2".to_vec()));
    assert_eq!((get("weather", "gone"), get("weather", "never"), get("w", "last")), (None, None, None));
    store.plugin_put("weather", "last", Some(b"3")).unwrap();
    assert_eq!(get("weather", "last"), Some(b"3".to_vec()), "no piece of the longer one is left");
}

#[test]
fn a_plugin_that_keeps_too_much_is_refused_and_loses_nothing() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let refused = |key: &str, value: &[u8]| match store.plugin_put("p", key, Some(value)) {
        Err(StoreError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(refused("", b"1").contains("256"));
    assert!(refused(&"k".repeat(257), b"1").contains("257"));
    assert!(refused("a\0b", b"1").contains("control"));
    assert!(refused("k", &[b'1'; 64 * 1024 + 1]).contains("65537"));
    assert_eq!(store.plugin_get("p", &"k".repeat(256)).unwrap(), None, "as long as it may be");
    for number in 0..15 {
        store.plugin_put("p", &format!("k{number}"), Some(&[b'1'; 64 * 1024])).unwrap();
    }
    assert!(refused("more", &[b'1'; 64 * 1024]).contains("1048576"));
    drop(store);
    let store = scratch.open();
    assert!(store.plugin_put("p", "more", Some(&[b'1'; 64 * 1024])).is_err(), "it is counted again after a restart");
    store.plugin_put("p", "k0", Some(b"1")).unwrap();
    store.plugin_put("p", "more", Some(&[b'1'; 64 * 1024])).unwrap();
    assert_eq!(store.plugin_get("p", "k1").unwrap().map(|value| value.len()), Some(64 * 1024));
    store.plugin_put("q", "k", Some(&[b'1'; 64 * 1024])).unwrap();
}

fn entry(number: u64, text: &str) -> crate::chronicle::Entry {
    crate::chronicle::Entry { unix_ms: number, instance: Some(1), text: text.into() }
}

#[test]
fn history_is_told_in_order_and_of_the_one_platform_only() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.note("echo", &entry(2, "second")).unwrap();
    store.note("echo", &entry(1, "first")).unwrap();
    store.note("echo", &entry(2, "third, in the same millisecond")).unwrap();
    store.note("echo2", &entry(3, "of a namesake")).unwrap();
    store.note("ech", &crate::chronicle::Entry { instance: None, ..entry(3, "\"quoted\"\n") }).unwrap();
    drop(store);
    let store = scratch.open();
    let texts = |name| store.history(name, 64).unwrap().into_iter().map(|entry| entry.text).collect::<Vec<_>>();
    assert_eq!(texts("echo"), ["first", "second", "third, in the same millisecond"]);
    assert_eq!(texts("ech"), ["\"quoted\"\n"]);
    assert_eq!(store.history("ech", 64).unwrap()[0].instance, None);
    let last = store.history("echo", 1).unwrap();
    assert_eq!(last, [entry(2, "third, in the same millisecond")]);
}

#[test]
fn history_is_bounded_and_the_oldest_goes_first() {
    let scratch = Scratch::new();
    let store = scratch.open();
    (0..150).for_each(|number| store.note("echo", &entry(number, "x")).unwrap());
    drop(store);
    let store = scratch.open();
    (150..300).for_each(|number| store.note("echo", &entry(number, "x")).unwrap());
    let kept = store.history("echo", 1000).unwrap();
    assert_eq!((kept.len(), kept[0].unix_ms, kept[199].unix_ms), (200, 100, 299));
}

#[test]
fn starts_are_remembered_for_their_day() {
    let scratch = Scratch::new();
    let store = scratch.open();
    assert_eq!(store.starts("echo", 20_000).unwrap(), 0);
    store.spend("echo", 20_000, 7).unwrap();
    store.spend("echo", 20_000, 8).unwrap();
    drop(store);
    let store = scratch.open();
    assert_eq!((store.starts("echo", 20_000).unwrap(), store.starts("echo", 20_001).unwrap()), (8, 0));
}

#[test]
fn what_was_handed_over_survives_without_a_close() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.note("echo", &entry(1, "it is ready")).unwrap();
    store.spend("echo", 20_000, 3).unwrap();
    store.hand_over().unwrap();
    // As after a kill: what the files hold now is all there is.
    let other = Scratch::new();
    copy(&scratch.data(), &other.data());
    let survivor = other.open();
    assert_eq!(survivor.history("echo", 64).unwrap(), [entry(1, "it is ready")]);
    assert_eq!(survivor.starts("echo", 20_000).unwrap(), 3);
}

#[test]
fn a_store_of_an_earlier_demi_without_history_opens() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let id = store.bury(&letter("hello")).unwrap();
    for tree in ["history", "starts"] {
        assert!(store.db.drop_tree(tree).unwrap());
    }
    drop(store);
    let store = scratch.open();
    assert_eq!(store.list(&ALL, 0, 10).unwrap().letters[0].0, id);
    store.note("echo", &entry(1, "new")).unwrap();
    assert!(scratch.set_aside().is_empty());
}

#[test]
fn a_long_entry_is_cut_to_what_a_page_can_hold() {
    let scratch = Scratch::new();
    let store = scratch.open();
    for text in ["ä".repeat(5_000), "\u{1}".repeat(5_000), "a".repeat(INLINE_BYTES)] {
        store.note("echo", &entry(1, &text)).unwrap();
        let kept = store.history("echo", 1).unwrap().remove(0).text;
        assert!(text.starts_with(&kept) && kept.len() >= INLINE_BYTES / 6 - 8, "{} bytes", kept.len());
    }
    let values = store.history.iter().values().map(Result::unwrap);
    assert!(values.map(|value| value.len()).all(|length| length <= INLINE_BYTES && length > INLINE_BYTES - 16));
}

/// The store that an earlier Demi left; see `fixture.rs`. To keep one of the present version: `fixture::pack` a directory.
pub(super) fn earlier(packed: &[u8]) -> Scratch {
    let scratch = Scratch::new();
    fixture::unpack(packed, &scratch.data());
    scratch
}

#[test]
fn a_store_of_version_1_is_taken_to_the_present_one_with_all_that_is_in_it() {
    let scratch = earlier(include_bytes!("../../../tests/fixtures/store-v1"));
    for _ in 0..2 {
        let store = scratch.open();
        let page = store.list(&ALL, 0, 10).unwrap();
        let bodies: Vec<&[u8]> = page.letters.iter().map(|(_, letter)| &letter.body[..]).collect();
        assert_eq!(bodies, [b"short", "long ".repeat(400).as_bytes(), &[0xff, 0, 0x80]]);
        for (_, found) in &page.letters {
            let expected =
                DeadLetter { route: String::new(), first_error: String::new(), ..letter(found.body.clone()) };
            assert_eq!(*found, expected);
        }
        let of = LetterFilter { platform: Some("discord".into()), ..ALL };
        assert_eq!(store.list(&of, 0, 10).unwrap(), page, "the long one as well");
        assert_eq!(store.letters_by_platform(), [("discord".to_owned(), 3)].into());
        assert_eq!(store.history("echo", 64).unwrap(), [entry(1_760_000_000_000, "it is ready")]);
        assert_eq!(store.starts("echo", 20_000).unwrap(), 7);
        assert_eq!(store.plugin_get("weather", "last").unwrap().unwrap(), br#"{"rain":false}"#);
        let meta = store.db.open_tree("meta").unwrap();
        assert_eq!(meta.get("schema").unwrap().unwrap(), SCHEMA.to_be_bytes());
    }
    assert_eq!(scratch.open().bury(&letter("new")).unwrap(), 4);
    assert!(scratch.set_aside().is_empty());
}

#[test]
fn a_migration_that_was_cut_short_is_taken_again() {
    let scratch = earlier(include_bytes!("../../../tests/fixtures/store-v1"));
    let store = scratch.open();
    // As if the power had gone before the version was written.
    store.db.open_tree("meta").unwrap().insert("schema", &1u32.to_be_bytes()).unwrap();
    let before = store.list(&ALL, 0, 10).unwrap();
    drop(store);
    assert_eq!(scratch.open().list(&ALL, 0, 10).unwrap(), before);
}

#[test]
fn a_packed_store_is_the_same_when_it_is_unpacked() {
    let scratch = Scratch::new();
    scratch.open().bury(&letter(vec![1; 5000])).unwrap();
    let packed = fixture::pack(&scratch.data());
    let copied = earlier(&packed);
    assert_eq!(fixture::pack(&copied.data()), packed);
    assert_eq!(copied.open().dead_letters(), 1);
}

#[test]
fn letters_are_found_by_platform_route_reason_and_age_be_they_short_or_long() {
    let scratch = Scratch::new();
    let store = scratch.open();
    for (platform, reason, hours, length) in
        [("discord", "no answer", 1, 10), ("voice", "no answer", 2, 5000), ("voice", "it broke", 3, 5000)]
    {
        let body = vec![b'x'; length];
        let buried_at_unix_ms = hours * 3_600_000;
        let (platform, reason) = (platform.to_owned(), reason.to_owned());
        store.bury(&DeadLetter { platform, reason, buried_at_unix_ms, ..letter(body) }).unwrap();
    }
    let found = |filter: LetterFilter| -> Vec<u64> {
        store.list(&filter, 0, 10).unwrap().letters.into_iter().map(|(id, _)| id).collect()
    };
    assert_eq!(found(LetterFilter { platform: Some("voice".into()), ..ALL }), [2, 3]);
    assert_eq!(found(LetterFilter { platform: Some("voic".into()), ..ALL }), [0u64; 0]);
    assert_eq!(found(LetterFilter { reason: Some("answer".into()), ..ALL }), [1, 2]);
    assert_eq!(found(LetterFilter { route: Some("routes[2]".into()), ..ALL }), [1, 2, 3]);
    assert_eq!(found(LetterFilter { route: Some("routes[1]".into()), ..ALL }), [0u64; 0]);
    assert_eq!(found(LetterFilter { from_unix_ms: Some(7_200_000), ..ALL }), [2, 3]);
    assert_eq!(found(LetterFilter { until_unix_ms: Some(7_200_000), ..ALL }), [1]);
    let both = LetterFilter { platform: Some("voice".into()), reason: Some("broke".into()), ..ALL };
    assert_eq!(found(both.clone()), [3]);
    assert_eq!(store.purge(&both).unwrap(), (1, false));
    assert_eq!(store.letters_by_platform(), [("discord".to_owned(), 1), ("voice".to_owned(), 1)].into());
    assert_eq!(store.oldest_letter().unwrap(), Some(3_600_000));
}

#[test]
fn a_changed_letter_is_whole_after_a_restart_however_long_it_was_and_is() {
    let scratch = Scratch::new();
    let files = || fs::read_dir(scratch.data().join(LETTER_FILES)).unwrap().count();
    let store = scratch.open();
    let id = store.bury(&letter("short")).unwrap();
    for (body, files_then) in [(vec![1; 5000], 1), (vec![2; 6000], 1), (vec![3; 10], 0), (vec![4; 5000], 1)] {
        assert!(store.change(id, |letter| (letter.body, letter.replays) = (body.clone(), letter.replays + 1)).unwrap());
        store.flush().unwrap();
        assert_eq!(store.find(id).unwrap().unwrap().body, body);
        assert_eq!(files(), files_then);
    }
    drop(store);
    let store = scratch.open();
    let expected = DeadLetter { replays: 4, ..letter(vec![4; 5000]) };
    assert_eq!(store.find(id).unwrap(), Some(expected));
    assert!(!store.change(99, |_| ()).unwrap() && !store.remove(99).unwrap() && !store.remove(u64::MAX).unwrap());
    assert!(store.remove(id).unwrap());
    store.flush().unwrap();
    assert_eq!((store.dead_letters(), files(), store.find(id).unwrap()), (0, 0, None));
}

#[test]
fn a_file_that_no_letter_names_goes_at_the_next_start() {
    let scratch = Scratch::new();
    scratch.open().bury(&letter(vec![1; 5000])).unwrap();
    let files = scratch.data().join(LETTER_FILES);
    for name in ["7", "1.new", "notes"] {
        fs::write(files.join(name), "x").unwrap();
    }
    let store = scratch.open();
    assert_eq!(store.list(&ALL, 0, 9).unwrap().letters.len(), 1);
    let mut left: Vec<_> = fs::read_dir(&files).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["1", "notes"], "what is not ours stays");
}

#[test]
fn letters_go_when_they_are_too_old_and_not_a_day_before() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let day = 86_400_000;
    for number in 0..10 {
        store.bury(&DeadLetter { buried_at_unix_ms: number * day, ..letter("x") }).unwrap();
    }
    assert_eq!(store.forget_letters(30 * day).unwrap(), ([].into(), false), "the first is thirty days old, not more");
    assert_eq!(store.forget_letters(33 * day).unwrap(), ([("discord".to_owned(), 3)].into(), false));
    assert_eq!((store.dead_letters(), store.oldest_letter().unwrap()), (7, Some(3 * day)));
    assert_eq!(store.bury(&letter("x")).unwrap(), 11, "no id is given again");
}

#[test]
fn many_are_purged_in_steps() {
    let scratch = Scratch::new();
    let store = Store::open(&scratch.data(), &settings(10_000)).unwrap();
    (0..PURGED_MAX + 5).for_each(|_| _ = store.bury(&letter("x")).unwrap());
    assert_eq!(store.purge(&ALL).unwrap(), (PURGED_MAX as u64, true));
    assert_eq!(store.purge(&ALL).unwrap(), (5, false));
    assert_eq!(store.dead_letters(), 0);
}
