//! Clients that follow what becomes of messages.
//!
//! No end is missed and none told twice, because the clerk tells everything in one order: that it has kept an end, once that is
//! durable, and what it has read for a client. An end that came before it read is in what it read; one that came later is told
//! after that. So a client is a follower from the moment on at which the shell hears what was read for it, and whoever wants
//! the ends of before gets them from the store until it has caught up.

use demi_platform::Request;

use super::Shell;
use crate::api;
use crate::clerk::{End, Found, PostErrand};
use crate::http;
use crate::problem::Problem;

/// All clients with a stream, as many as `http.event_streams_max` allows.
#[derive(Default)]
pub(super) struct Followers {
    list: Vec<Follower>,
    /// The number of the end that was told last, to whoever was there.
    last_told: u64,
}

struct Follower {
    place: usize,
    serial: u64,
    follows: Follows,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Follows {
    /// This message, until it ends.
    Message(u64),
    /// The ends of all messages, as they come.
    All,
    /// Those that are remembered after this one, before it goes on with what comes. `is_asked`: the clerk is to read more.
    Past { after: u64, is_asked: bool },
}

impl Followers {
    /// Nobody, after the end with this number.
    pub(super) fn new(last_told: u64) -> Followers {
        Followers { list: Vec::new(), last_told }
    }
}

impl Shell {
    /// A client wants to follow a message.
    pub(super) fn follow_message(&mut self, place: usize, serial: u64, id: u64, request: &Request<'_>) {
        let last = http::header(request.headers, "last-event-id");
        // Whoever was told the end and asks again is a browser that takes every end of a stream for an accident.
        let has_heard = last.is_some_and(|last| last == id.to_string().as_bytes());
        let errand = PostErrand::Follow { place, serial, id, has_heard };
        if let Err(problem) = self.may_follow(request).and_then(|()| self.send_to_read(errand)) {
            self.listener.respond_problem(place, serial, &problem, self.now, &mut self.kit);
        }
    }

    /// A client wants to follow the ends of all messages.
    pub(super) fn follow_all(&mut self, place: usize, serial: u64, request: &Request<'_>) {
        let begun = self.may_follow(request).and_then(|()| match api::last_event_id(request.headers)? {
            Some(after) => self.send_to_read(PostErrand::Ends { place, serial, after }),
            None => {
                let first = api::position(self.followers.last_told);
                self.begin_to_follow(place, serial, Follows::All, &first);
                Ok(())
            }
        });
        if let Err(problem) = begun {
            self.listener.respond_problem(place, serial, &problem, self.now, &mut self.kit);
        }
    }

    fn may_follow(&mut self, request: &Request<'_>) -> Result<(), Problem> {
        api::check_accept(request.headers)?;
        self.listener.refuse_events().map_or(Ok(()), Err)
    }

    fn send_to_read(&self, errand: PostErrand) -> Result<(), Problem> {
        self.send_post(errand).then_some(()).ok_or_else(api::store_busy)
    }

    fn begin_to_follow(&mut self, place: usize, serial: u64, follows: Follows, first: &[u8]) {
        let (now, kit) = (self.now, &mut self.kit);
        if self.listener.begin_events(place, serial, first, now, kit) {
            // So there are never more of them than streams.
            self.forget_followers();
            self.followers.list.push(Follower { place, serial, follows });
        }
    }

    /// Forgets those who have gone or were told all.
    fn forget_followers(&mut self) {
        let listener = &self.listener;
        self.followers.list.retain(|follower| listener.follows(follower.place, follower.serial));
    }

    /// The clerk has read what a client that follows is told first, or next.
    pub(super) fn found(&mut self, place: usize, serial: u64, found: Result<Found, Box<Problem>>) {
        let is_new = !self.listener.follows(place, serial);
        let (now, kit) = (self.now, &mut self.kit);
        let found = match found {
            Ok(Found::Heard) => return self.listener.respond(place, serial, 204, "", b"", b"", now, kit),
            Ok(Found::Ended(event)) => {
                self.listener.begin_events(place, serial, &event, now, kit);
                return self.listener.end_events(place, serial, now);
            }
            Ok(found) => match self.listener.refuse_events().filter(|_| is_new) {
                Some(problem) => Err(Box::new(problem)),
                None => Ok(found),
            },
            Err(problem) => Err(problem),
        };
        match found {
            Ok(Found::Waits(id, event)) => self.begin_to_follow(place, serial, Follows::Message(id), &event),
            Ok(Found::Ends { events, last, has_more }) => {
                let follows = if has_more { Follows::Past { after: last, is_asked: false } } else { Follows::All };
                if is_new {
                    return self.begin_to_follow(place, serial, follows, &events);
                }
                self.listener.tell(place, serial, &events, self.now, &mut self.kit);
                let mut list = self.followers.list.iter_mut();
                if let Some(follower) = list.find(|other| (other.place, other.serial) == (place, serial)) {
                    follower.follows = follows;
                }
            }
            // Answered above.
            Ok(Found::Heard | Found::Ended(_)) => {}
            Err(problem) if is_new => self.listener.respond_problem(place, serial, &problem, self.now, &mut self.kit),
            Err(_) => self.listener.break_events(place, serial, &mut self.kit),
        }
    }

    /// Has more read for those who catch up and have taken what was read before.
    pub(super) fn read_on_for_followers(&mut self) {
        let mut list = std::mem::take(&mut self.followers.list);
        for Follower { place, serial, follows } in &mut list {
            if let Follows::Past { after, is_asked: is_asked @ false } = follows {
                let errand = PostErrand::Ends { place: *place, serial: *serial, after: *after };
                // If too much waits, it is tried in the next turn.
                *is_asked = self.listener.is_abreast(*place, *serial) && self.send_post(errand);
            }
        }
        self.followers.list = list;
    }

    /// A message has ended, and that is durable.
    pub(super) fn tell_end(&mut self, id: u64, end: &End) {
        self.followers.last_told = end.number.unwrap_or(self.followers.last_told);
        let Some(result) = end.result.as_ref().filter(|_| !self.followers.list.is_empty()) else { return };
        let event = api::ended_event(end.number, id, result);
        let (now, kit) = (self.now, &mut self.kit);
        for Follower { place, serial, follows } in &self.followers.list {
            match follows {
                Follows::Message(followed) if *followed == id => {
                    self.listener.tell(*place, *serial, &api::ended_event(Some(id), id, result), now, kit);
                    self.listener.end_events(*place, *serial, now);
                }
                Follows::All => self.listener.tell(*place, *serial, &event, now, kit),
                // Those who catch up find it in the store.
                Follows::Message(_) | Follows::Past { .. } => {}
            }
        }
        self.forget_followers();
    }

    /// An attempt to deliver a message failed.
    pub(super) fn tell_attempt(&mut self, id: u64, attempts: u32, error: &str) {
        let (now, kit) = (self.now, &mut self.kit);
        for Follower { place, serial, .. } in
            self.followers.list.iter().filter(|follower| follower.follows == Follows::Message(id))
        {
            self.listener.tell(*place, *serial, &api::attempt_event(id, attempts, error), now, kit);
        }
    }
}
