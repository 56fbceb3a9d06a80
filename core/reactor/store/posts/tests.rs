#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::super::tests::{copy, earlier, settings, Scratch};
use super::*;

fn post(body: impl Into<Vec<u8>>) -> Post {
    Post {
        accepted_unix_ms: 1_760_000_000_123,
        expires_unix_ms: 1_760_000_900_000,
        platform: "discord".into(),
        conversation: "channel 7".into(),
        from: "android".into(),
        kind: "message".into(),
        method: "POST".into(),
        target: "/v1/messages?x=1".into(),
        body: body.into(),
        ..Post::default()
    }
}

fn keyed(key: &str, body: &str) -> Post {
    Post { idempotency_key: key.into(), ..post(body) }
}

fn delivered(settled_unix_ms: u64) -> PostResult {
    PostResult { settled_unix_ms, status: 204, attempts: 1, ..PostResult::default() }
}

fn pending(store: &Store) -> Vec<(u64, Post)> {
    let mut posts = Vec::new();
    store.pending(|id, post| posts.push((id, post))).unwrap();
    posts
}

fn ids(store: &Store) -> Vec<u64> {
    pending(store).into_iter().map(|(id, _)| id).collect()
}

#[test]
fn posts_wait_in_order_over_a_restart_be_they_short_or_long() {
    let scratch = Scratch::new();
    let posts = [post("short"), post(vec![0xfe; 100_000]), Post { conversation: String::new(), ..post("") }];
    let store = scratch.open();
    for (number, post) in (1..).zip(&posts) {
        assert_eq!(store.post(post, u64::MAX).unwrap(), Posted::New(number));
    }
    drop(store);
    let store = scratch.open();
    assert_eq!(pending(&store), (1..).zip(posts.clone()).collect::<Vec<_>>());
    for (number, post) in (1..).zip(&posts) {
        assert_eq!(store.read_post(number).unwrap().as_ref(), Some(post));
    }
    assert_eq!((store.read_post(4).unwrap(), store.read_post(u64::MAX).unwrap()), (None, None));
    assert_eq!(store.post(&posts[0], u64::MAX).unwrap(), Posted::New(4));
}

#[test]
fn a_settled_post_is_gone_and_what_became_of_it_is_known_for_a_day() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.post(&post("a"), u64::MAX).unwrap();
    store.post(&post(vec![1; 5000]), u64::MAX).unwrap();
    assert!(store.settle_post(1, &delivered(1_000)).unwrap() && store.settle_post(2, &delivered(2_000)).unwrap());
    assert!(!store.settle_post(1, &delivered(3_000)).unwrap(), "once");
    store.flush().unwrap();
    assert_eq!(fs::read_dir(scratch.data().join(POST_FILES)).unwrap().count(), 0);
    drop(store);
    let store = scratch.open();
    assert_eq!((ids(&store), store.posts_waiting()), (vec![], 0));
    assert_eq!(store.post_result(1).unwrap(), Some(delivered(1_000)));
    assert_eq!(store.forget_posts(1_000 + REMEMBERED_MS, u64::MAX, 100).unwrap(), 0, "a day, not less");
    assert_eq!(store.forget_posts(1_001 + REMEMBERED_MS, u64::MAX, 100).unwrap(), 1);
    assert_eq!((store.post_result(1).unwrap(), store.post_result(2).unwrap()), (None, Some(delivered(2_000))));
    assert_eq!(store.forget_posts(u64::MAX, u64::MAX, 100).unwrap(), 1);
    assert_eq!(store.posts.len(), 1, "the tally alone is left");
    assert_eq!(store.post(&post("b"), u64::MAX).unwrap(), Posted::New(3), "no id is given again");
}

#[test]
fn ends_are_numbered_as_they_are_kept_whatever_the_clock_says_and_after_a_start_too() {
    let scratch = Scratch::new();
    let store = scratch.open();
    assert_eq!((store.last_end(), store.ends(0, 9).unwrap()), (0, vec![]));
    (1..=6).for_each(|id| assert_eq!(store.post(&post("a"), u64::MAX).unwrap(), Posted::New(id)));
    for (id, unix_ms) in [(2, 5_000), (1, 5_000), (3, 4_000)] {
        assert!(store.settle_post(id, &delivered(unix_ms)).unwrap());
    }
    assert!(!store.settle_post(3, &delivered(9_000)).unwrap() && store.last_end() == 5_000_002, "once");
    store.flush().unwrap();
    drop(store);
    let store = scratch.open();
    assert_eq!(store.last_end(), 5_000_002);
    assert!(store.settle_post(5, &delivered(3_000)).unwrap() && store.settle_post(4, &delivered(6_000)).unwrap());
    let ends = |after, max| -> Vec<(u64, u64, u64)> {
        let ends = store.ends(after, max).unwrap().into_iter();
        ends.map(|(number, id, result)| (number, id, result.settled_unix_ms)).collect()
    };
    let first = [(5_000_000, 2, 5_000), (5_000_001, 1, 5_000), (5_000_002, 3, 4_000)];
    let second = [(5_000_003, 5, 3_000), (6_000_000, 4, 6_000)];
    assert_eq!(ends(0, 9), [&first[..], &second[..]].concat());
    assert_eq!((ends(0, 3), ends(5_000_002, 9)), (first.to_vec(), second.to_vec()));
    assert_eq!((ends(6_000_000, 9), ends(u64::MAX, 9)), (vec![], vec![]));
    assert_eq!(store.forget_posts(5_000 + REMEMBERED_MS, u64::MAX, 9).unwrap(), 2);
    assert_eq!(ends(0, 9), [first[0], first[1], second[1]]);
    assert!(store.settle_post(6, &delivered(u64::MAX)).unwrap() && ends(6_000_000, 9)[0].0 == u64::MAX);
}

#[test]
fn one_key_is_one_post_for_a_day_after_it_was_settled() {
    let scratch = Scratch::new();
    let store = scratch.open();
    assert_eq!(store.post(&keyed("k", "a"), u64::MAX).unwrap(), Posted::New(1));
    assert_eq!(store.post(&keyed("k", "a"), u64::MAX).unwrap(), Posted::Known(1, None));
    assert_eq!(store.post(&keyed("k", "b"), u64::MAX).unwrap(), Posted::Conflict(1));
    assert_eq!(
        store.post(&Post { target: "/other".into(), ..keyed("k", "a") }, u64::MAX).unwrap(),
        Posted::Conflict(1)
    );
    assert_eq!(store.post(&keyed("l", "a"), u64::MAX).unwrap(), Posted::New(2));
    drop(store);
    let store = scratch.open();
    store.settle_post(1, &delivered(5_000)).unwrap();
    assert_eq!(store.post(&keyed("k", "a"), u64::MAX).unwrap(), Posted::Known(1, Some(delivered(5_000))));
    store.forget_posts(5_000 + REMEMBERED_MS, u64::MAX, 100).unwrap();
    assert_eq!(store.post(&keyed("k", "b"), u64::MAX).unwrap(), Posted::Conflict(1));
    store.forget_posts(5_001 + REMEMBERED_MS, u64::MAX, 100).unwrap();
    assert_eq!(store.post(&keyed("k", "b"), u64::MAX).unwrap(), Posted::New(3));
    assert_eq!(store.post(&keyed("l", "a"), u64::MAX).unwrap(), Posted::Known(2, None), "as long as it waits");
    let long = store.post(&keyed(&"k".repeat(257), "a"), u64::MAX).unwrap_err();
    assert!(long.to_string().contains("at most 256 bytes; this one has 257"), "{long}");
}

#[test]
fn attempts_are_remembered_without_touching_the_request() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let lengths = [10, 700, 5_000];
    lengths.iter().for_each(|length| drop(store.post(&post(vec![7; *length]), u64::MAX).unwrap()));
    for id in 1..=3 {
        assert!(store.note_tries(id, 1, 0, "no answer").unwrap());
        assert!(store.note_tries(id, 2, 1, &"ä".repeat(300)).unwrap());
    }
    assert!(!store.note_tries(4, 1, 0, "").unwrap());
    drop(store);
    let store = scratch.open();
    for (id, length) in ids(&store).into_iter().zip(lengths) {
        let expected = Post {
            attempts: 2,
            kills: 1,
            first_error: "no answer".into(),
            last_error: "ä".repeat(100),
            ..post(vec![7; length])
        };
        assert_eq!(store.read_post(id).unwrap(), Some(expected));
    }
}

#[test]
fn a_post_that_cannot_be_read_is_told_of_as_far_as_it_can_be_and_buried_with_what_is_left_of_it() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let long = Post { idempotency_key: "k".into(), ..post(vec![7; 5_000]) };
    store.post(&long, u64::MAX).unwrap();
    store.post(&post("cut"), u64::MAX).unwrap();
    store.post(&post("sound"), u64::MAX).unwrap();
    store.note_tries(1, 3, 1, "no answer").unwrap();
    fs::remove_file(scratch.data().join(POST_FILES).join("1")).unwrap();
    let mut entry = store.post_entry(2).unwrap().unwrap().to_vec();
    entry.pop();
    store.posts.insert(tagged(POST, 2), entry.clone()).unwrap();
    let told = pending(&store);
    assert_eq!(
        told.iter().map(|(id, post)| (*id, post.platform.as_str())).collect::<Vec<_>>(),
        [(1, "discord"), (2, ""), (3, "discord")]
    );
    assert_eq!((told[0].1.attempts, told[0].1.kills, &told[1].1), (3, 1, &Post::default()));
    for id in [1, 2] {
        let Err(StoreError::Damaged { what, .. }) = store.read_post(id) else { panic!("{id} can be read") };
        assert_eq!(store.bury_damaged(id, &what, 88_000).unwrap(), Some(id));
        assert_eq!(store.post_result(id).unwrap().unwrap().end, PostEnd::Buried(id));
    }
    assert_eq!((ids(&store), store.posts_waiting()), (vec![3], 1));
    let gone = store.find(1).unwrap().unwrap();
    assert_eq!((gone.post, gone.reason.as_str(), gone.platform.as_str()), (1, "damaged", "discord"));
    assert!(gone.last_error.contains("the file of post 1 is gone") && gone.first_error == "no answer", "{gone:?}");
    let cut = store.find(2).unwrap().unwrap();
    assert_eq!((cut.post, cut.buried_at_unix_ms, cut.body), (2, 88_000, entry));
    // The key went with the post though its file was lost.
    assert!(matches!(store.post(&long, u64::MAX).unwrap(), Posted::Known(1, Some(_))));
    store.forget_posts(u64::MAX, u64::MAX, 100).unwrap();
    assert_eq!(store.post(&long, u64::MAX).unwrap(), Posted::New(4));
}

#[test]
fn a_key_that_outlived_what_it_was_used_for_stands_for_nothing() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.post(&keyed("k", "a"), u64::MAX).unwrap();
    // As if its entry had been unreadable when it ended, and that were forgotten.
    store.posts.remove(tagged(POST, 1)).unwrap();
    assert_eq!(store.post(&keyed("k", "a"), u64::MAX).unwrap(), Posted::New(2));
    assert_eq!(store.post(&keyed("k", "b"), u64::MAX).unwrap(), Posted::Conflict(2));
}

#[test]
fn posts_of_version_2_are_all_there_and_their_keys_are_forgotten_in_time() {
    let scratch = earlier(include_bytes!("../../../../tests/fixtures/store-v2"));
    let at = |store: &Store| store.post_result(3).unwrap().unwrap().settled_unix_ms + REMEMBERED_MS + 1;
    for round in 0..2 {
        let store = scratch.open();
        let waiting = pending(&store);
        let tried =
            |post: Post| Post { attempts: 3, first_error: "no answer".into(), last_error: "no answer".into(), ..post };
        let expected = [(1, tried(keyed("waits", "short"))), (2, keyed("long waits", &"long ".repeat(400)))];
        assert_eq!(waiting, expected, "{round}");
        assert_eq!(store.post_result(4).unwrap().unwrap().end, PostEnd::Buried(1));
        assert!(matches!(store.post(&keyed("delivered", "gone"), u64::MAX).unwrap(), Posted::Known(3, Some(_))));
        assert_eq!(store.post(&keyed("waits", "short"), u64::MAX).unwrap(), Posted::Known(1, None));
        if round == 0 {
            // As if the power had gone before the version was written.
            store.db.open_tree("meta").unwrap().insert("schema", &2u32.to_be_bytes()).unwrap();
        }
    }
    let store = scratch.open();
    assert_eq!(store.forget_posts(at(&store), u64::MAX, 100).unwrap(), 2);
    assert_eq!(store.post(&keyed("delivered", "gone"), u64::MAX).unwrap(), Posted::New(5));
    assert_eq!(store.post(&keyed("dead", "other"), u64::MAX).unwrap(), Posted::New(6));
}

#[test]
fn only_so_many_ended_posts_are_remembered_and_the_oldest_go_first() {
    let scratch = Scratch::new();
    let store = scratch.open();
    for id in 1..=30 {
        store.post(&keyed(&format!("k{id}"), "a"), u64::MAX).unwrap();
        store.settle_post(id, &delivered(1_000 + id)).unwrap();
        store.forget_posts(0, 10, 2).unwrap();
    }
    let remembered: Vec<u64> = (1..=30).filter(|id| store.post_result(*id).unwrap().is_some()).collect();
    assert_eq!(remembered, (21..=30).collect::<Vec<u64>>());
    assert_eq!(store.post(&keyed("k1", "b"), u64::MAX).unwrap(), Posted::New(31));
    assert!(matches!(store.post(&keyed("k30", "a"), u64::MAX).unwrap(), Posted::Known(30, Some(_))));
}

#[test]
fn what_the_database_lost_does_not_have_its_numbers_given_again() {
    let scratch = Scratch::new();
    let store = scratch.open();
    for body in ["a", "b"] {
        store.post(&post(body), u64::MAX).unwrap();
    }
    store.flush().unwrap();
    drop(store);
    let earlier = Scratch::new();
    copy(&scratch.data(), &earlier.data());
    let store = scratch.open();
    for body in ["c", "d", "e"] {
        store.post(&post(body), u64::MAX).unwrap();
    }
    store.bury_post(1, letter_of(&post("a")), 0).unwrap();
    store.flush().unwrap();
    drop(store);
    // As sled has it when the end of its log is damaged.
    fs::remove_dir_all(scratch.data().join("db")).unwrap();
    copy(&earlier.data().join("db"), &scratch.data().join("db"));
    let store = scratch.open();
    assert_eq!(ids(&store), [1, 2]);
    assert_eq!(store.post(&post("f"), u64::MAX).unwrap(), Posted::New(6));
    assert_eq!(store.bury_post(2, letter_of(&post("b")), 0).unwrap(), Some(2));
    drop(store);
    // And if all of it is unreadable.
    let conf = scratch.data().join("db/conf");
    fs::write(&conf, vec![0xa5; fs::metadata(&conf).unwrap().len() as usize]).unwrap();
    let store = scratch.open();
    assert_eq!((ids(&store), scratch.set_aside().len()), (vec![], 1));
    assert_eq!(store.post(&post("g"), u64::MAX).unwrap(), Posted::New(6), "what was not flushed was never told");
}

fn letter_of(post: &Post) -> DeadLetter {
    DeadLetter {
        buried_at_unix_ms: 77_000,
        platform: post.platform.clone(),
        reason: "it broke".into(),
        attempts: 5,
        body: post.body.clone(),
        ..DeadLetter::default()
    }
}

#[test]
fn a_post_that_is_buried_is_a_letter_and_says_so() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.post(&keyed("k", "a"), u64::MAX).unwrap();
    assert_eq!(store.bury_post(1, letter_of(&post("a")), 500).unwrap(), Some(1));
    assert_eq!(store.bury_post(1, letter_of(&post("a")), 500).unwrap(), None);
    let result = store.post_result(1).unwrap().unwrap();
    assert_eq!((result.end, result.status, result.error.as_str()), (PostEnd::Buried(1), 500, "it broke"));
    assert_eq!((store.posts_waiting(), store.find(1).unwrap().unwrap().post), (0, 1));
    assert!(matches!(store.post(&keyed("k", "a"), u64::MAX).unwrap(), Posted::Known(1, Some(_))));
}

#[test]
fn a_crash_in_the_middle_of_a_burial_neither_loses_nor_doubles() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.post(&post("a"), u64::MAX).unwrap();
    store.post(&post("b"), u64::MAX).unwrap();
    // All of a burial that comes before the crash.
    store.bury(&DeadLetter { post: 1, ..letter_of(&post("a")) }).unwrap();
    store.flush().unwrap();
    let killed = Scratch::new();
    copy(&scratch.data(), &killed.data());
    let after = killed.open();
    assert_eq!((ids(&after), after.dead_letters()), (vec![2], 1));
    assert_eq!(after.post_result(1).unwrap().unwrap().end, PostEnd::Buried(1));
}

#[test]
fn at_the_maximum_a_post_is_refused_and_at_that_of_letters_it_waits_on() {
    let scratch = Scratch::new();
    let store = Store::open(&scratch.data(), &settings(1)).unwrap();
    store.post(&keyed("k", "a"), 2).unwrap();
    store.post(&post("b"), 2).unwrap();
    let refusal = store.post(&post("c"), 2).unwrap_err();
    assert!(matches!(refusal, StoreError::PostsFull { waiting: 2, max: 2 }));
    assert!(refusal.to_string().contains("`posts.queue_max`"));
    assert_eq!(store.post(&keyed("k", "a"), 2).unwrap(), Posted::Known(1, None), "what was taken is still known");
    assert_eq!(store.bury_post(1, letter_of(&post("a")), 0).unwrap(), Some(1));
    assert!(matches!(store.bury_post(2, letter_of(&post("b")), 0), Err(StoreError::Full { .. })));
    assert_eq!(ids(&store), [2]);
}

#[test]
fn a_truncated_or_garbled_entry_is_refused() {
    let whole = post("hello");
    let request = whole.encode_request();
    let entry = [whole.encode_head(request.len()), request.clone()].concat();
    assert_eq!(Entry::decode(&entry).unwrap().request, Some(&request[..]));
    let head = entry.len() - request.len();
    for end in (0..entry.len()).filter(|end| *end != head) {
        assert!(Entry::decode(&entry[..end]).is_none(), "cut at {end}");
    }
    for end in 0..request.len() {
        assert_eq!(Post::default().decode_request(&request[..end]), None, "cut at {end}");
    }
    let result = PostResult { end: PostEnd::Buried(u64::MAX), error: "x".into(), ..delivered(u64::MAX) };
    assert_eq!(PostResult::decode(&result.encode()), Some(result.clone()));
    for end in 0..result.encode().len() {
        assert_eq!(PostResult::decode(&result.encode()[..end]), None, "cut at {end}");
    }
}

/// In a process of its own: takes posts in groups and says the last of each group once it is durable.
#[test]
#[ignore = "the test below runs it"]
fn posts_until_it_is_killed() {
    let data = std::env::var_os("DEMI_TEST_STORE").unwrap();
    let store = Store::open(data.as_ref(), &settings(1000)).unwrap();
    let mut stdout = std::io::stdout();
    loop {
        let mut last = 0;
        for _ in 0..7 {
            let Posted::New(id) = store.post(&post(vec![b'x'; 100]), u64::MAX).unwrap() else { panic!() };
            last = id;
            if id % 3 == 0 {
                store.settle_post(id - 1, &delivered(id)).unwrap();
            }
        }
        store.flush().unwrap();
        writeln!(stdout, "durable {last}").unwrap();
        stdout.flush().unwrap();
    }
}

#[test]
fn what_was_durable_when_demi_was_killed_is_there_and_the_rest_is_whole() {
    let scratch = Scratch::new();
    let mut last = 0;
    for round in 1..=4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "store::posts::tests::posts_until_it_is_killed"])
            .env("DEMI_TEST_STORE", scratch.data())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let durable = lines.filter_map(|line| line.strip_prefix("durable ")?.parse::<u64>().ok());
        last = durable.take(10 * round).last().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let store = scratch.open();
        let waiting = ids(&store);
        for id in 1..=last {
            let settled = store.post_result(id).unwrap().is_some();
            assert!(waiting.contains(&id) != settled, "post {id} is there once: settled {settled}");
        }
        assert_eq!(waiting.len() as u64, store.posts_waiting());
        waiting.iter().for_each(|id| assert_eq!(store.read_post(*id).unwrap().unwrap().body.len(), 100));
    }
    assert!(last > 0);
}

#[test]
fn a_log_whose_end_is_torn_off_opens_with_what_is_before() {
    let scratch = Scratch::new();
    let store = scratch.open();
    (0..200).for_each(|_| drop(store.post(&post(vec![1; 100]), u64::MAX).unwrap()));
    store.flush().unwrap();
    drop(store);
    let log = fs::read(scratch.data().join("db/db")).unwrap();
    for part in [1, 3, 6, 9] {
        let torn = Scratch::new();
        copy(&scratch.data(), &torn.data());
        fs::write(torn.data().join("db/db"), &log[..log.len() * part / 10]).unwrap();
        let store = torn.open();
        for id in ids(&store) {
            assert_eq!(store.read_post(id).unwrap(), Some(post(vec![1; 100])));
        }
        let Posted::New(_) = store.post(&post("new"), u64::MAX).unwrap() else { panic!("it takes posts again") };
    }
}

/// How long a start with 100,000 posts of 200 B takes, and what it holds; run it twice, the first run writes them:
/// `DEMI_TEST_STORE=/tmp/posts cargo test --release -p demi-reactor 100_000 -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn a_start_with_100_000_posts() {
    let data = std::path::PathBuf::from(std::env::var_os("DEMI_TEST_STORE").unwrap());
    let private_kb = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let (began, before) = (std::time::Instant::now(), private_kb());
    let store = Store::open(&data, &demi_conductor::config::Store::default()).unwrap();
    let opened = began.elapsed();
    let mut count = 0;
    store.pending(|_, _| count += 1).unwrap();
    println!(
        "{count} posts: opened in {opened:?}, visited after {:?}, {} KiB more",
        began.elapsed(),
        private_kb() - before
    );
    let began = std::time::Instant::now();
    let missing = 100_000_u64.saturating_sub(store.posts_waiting());
    for number in 0..missing {
        store.post(&post(vec![b'x'; 200]), u64::MAX).unwrap();
        if number % 64 == 0 {
            store.flush().unwrap();
        }
    }
    if missing > 0 {
        println!("{missing} posts in {:?}, a sync for each 64; {} KiB more", began.elapsed(), private_kb() - before);
    }
}
