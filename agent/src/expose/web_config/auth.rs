//! Passwords: hashed off the server's thread and one at a time, a right one remembered, wrong ones held up.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use ring::hmac;
use ring::rand::SystemRandom;
use tokio::sync::Semaphore;

use super::format::bcrypt_cost;

/// Wrong passwords in a row that an address may send; after that, one for each [`REFILL`].
const BURST: u32 = 10;

/// After how long an address may send one more.
const REFILL: Duration = Duration::from_secs(6);

/// Addresses whose wrong passwords are counted. Beyond that, the one with the least of them is forgotten.
const ADDRESSES: usize = 1024;

/// Passwords that wait for their hash, besides the one at work: one of each address.
const QUEUE: usize = 8;

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No user and password.
    Missing,
    /// They cannot be read.
    Malformed,
    UnknownUser,
    WrongPassword,
    /// Too many from this address were wrong; nothing was looked at. It may try again after that long.
    TooMany(Duration),
    /// Too many wait for their hash, or another from this address does.
    Busy,
}

/// The users of a file.
#[derive(Default)]
pub(super) struct Users {
    hashes: BTreeMap<String, String>,
    /// Of nobody, and as costly as the costliest: by the time that it takes, a name is not found out.
    stand_in: String,
}

impl Users {
    pub(super) fn new(hashes: BTreeMap<String, String>) -> Self {
        let cost = hashes.values().filter_map(|hash| bcrypt_cost(hash)).max();
        Self {
            stand_in: format!("$2b${:02}${}", cost.unwrap_or(10), ".".repeat(53)),
            hashes,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    pub(super) fn count(&self) -> usize {
        self.hashes.len()
    }
}

/// What a client sends.
struct Credentials {
    user: String,
    password: Vec<u8>,
}

impl Credentials {
    fn new(headers: &HeaderMap) -> Result<Self, Refusal> {
        let value = headers.get(AUTHORIZATION).ok_or(Refusal::Missing)?;
        let is_alone = headers.get_all(AUTHORIZATION).iter().count() == 1;
        let parsed = || {
            let (scheme, encoded) = value.to_str().ok()?.split_once(' ')?;
            let decoded = BASE64_STANDARD.decode(encoded.trim()).ok()?;
            let colon = decoded.iter().position(|byte| *byte == b':')?;
            Some(Self {
                user: String::from_utf8(decoded[..colon].to_vec()).ok()?,
                password: decoded[colon + 1..].to_vec(),
            })
            .filter(|_| is_alone && scheme.eq_ignore_ascii_case("basic"))
        };
        parsed().ok_or(Refusal::Malformed)
    }
}

/// Lets users in, and remembers whom.
pub(super) struct Authenticator {
    key: hmac::Key,
    /// By user, a keyed hash of name, bcrypt hash and password that were found right: at most one for each user, and
    /// of no use once the bcrypt hash is another.
    proven: Mutex<HashMap<String, hmac::Tag>>,
    failures: Mutex<Failures>,
    /// Who wait for their turn or have it.
    queue: Mutex<HashSet<IpAddr>>,
    turn: Arc<Semaphore>,
}

impl Authenticator {
    /// # Errors
    /// When the kernel gives no random numbers.
    pub(super) fn new() -> Result<Self, ring::error::Unspecified> {
        Ok(Self {
            key: hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())?,
            proven: Mutex::default(),
            failures: Mutex::default(),
            queue: Mutex::default(),
            turn: Arc::new(Semaphore::new(1)),
        })
    }

    /// Whether the one who sends these headers from there is one of `users`.
    ///
    /// # Errors
    /// Why not. Only for an unknown user and a wrong password was anything hashed.
    pub(super) async fn admit(
        &self,
        users: &Users,
        headers: &HeaderMap,
        peer: IpAddr,
    ) -> Result<(), Refusal> {
        if users.is_empty() {
            return Ok(());
        }
        let Credentials { user, password } = Credentials::new(headers)?;
        let hash = users.hashes.get(&user);
        let is_known = hash.is_some();
        let hash = hash.unwrap_or(&users.stand_in).clone();
        let mut message = Vec::with_capacity(user.len() + hash.len() + password.len() + 16);
        for part in [user.as_bytes(), hash.as_bytes()] {
            message.extend_from_slice(&part.len().to_le_bytes());
            message.extend_from_slice(part);
        }
        message.extend_from_slice(&password);
        if self.is_proven(&user, &message) {
            return Ok(());
        }

        let address = network(peer);
        self.failures().take(address, Instant::now())?;
        let Some(_place) = Place::take(&self.queue, address) else {
            self.failures().give_back(address);
            return Err(Refusal::Busy);
        };
        let turn = Arc::clone(&self.turn).acquire_owned().await;
        // Of several connections with the same password, the first may have proven it meanwhile.
        let is_right = self.is_proven(&user, &message) || {
            // The turn travels along: a client that leaves meanwhile must not let another hash begin.
            let hashed = tokio::task::spawn_blocking(move || {
                let is_right = bcrypt::verify(password, &hash).unwrap_or(false);
                drop(turn);
                is_right
            });
            hashed.await.unwrap_or(false)
        };
        match (is_right, is_known) {
            (true, true) => {
                let tag = hmac::sign(&self.key, &message);
                let mut proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
                proven.retain(|user, _| users.hashes.contains_key(user));
                proven.insert(user, tag);
                drop(proven);
                self.failures().give_back(address);
                Ok(())
            }
            (_, false) => Err(Refusal::UnknownUser),
            (false, true) => Err(Refusal::WrongPassword),
        }
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In a time that says nothing of the password, and hardly anything of the user.
    fn is_proven(&self, user: &str, message: &[u8]) -> bool {
        let proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        let tag = proven.get(user).copied();
        drop(proven);
        let known = tag.is_some();
        let tag = tag.unwrap_or_else(|| hmac::sign(&self.key, b""));
        hmac::verify(&self.key, message, tag.as_ref()).is_ok() && known
    }
}

/// A place among those that wait, given up on drop.
struct Place<'a> {
    queue: &'a Mutex<HashSet<IpAddr>>,
    address: IpAddr,
}

impl<'a> Place<'a> {
    fn take(queue: &'a Mutex<HashSet<IpAddr>>, address: IpAddr) -> Option<Self> {
        let mut waiting = queue.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = waiting.len() <= QUEUE && waiting.insert(address);
        has_room.then(|| Self { queue, address })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.remove(&self.address);
    }
}

/// What counts as one address: of IPv6, the network that a single host may have for itself.
pub(crate) fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = address.to_bits() >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from_bits(prefix))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// What an address may still send, by when it could send all of [`BURST`] again.
#[derive(Default)]
struct Failures(HashMap<IpAddr, Instant>);

impl Failures {
    /// Counts one, before it is known to be wrong: many at once are not looked at, either.
    fn take(&mut self, address: IpAddr, now: Instant) -> Result<(), Refusal> {
        let paid = self.0.get(&address).copied();
        let paid = spend(paid, now, REFILL, BURST).map_err(Refusal::TooMany)?;
        self.0.insert(address, paid);
        if self.0.len() > ADDRESSES {
            self.0.retain(|_, paid| *paid > now);
        }
        if self.0.len() > ADDRESSES {
            let others = self.0.iter().filter(|(other, _)| **other != address);
            let least = others.min_by_key(|(_, paid)| **paid);
            if let Some(least) = least.map(|(other, _)| *other) {
                self.0.remove(&least);
            }
        }
        Ok(())
    }

    /// It was right.
    fn give_back(&mut self, address: IpAddr) {
        if let Some(paid) = self.0.get_mut(&address) {
            *paid = paid.checked_sub(REFILL).unwrap_or(*paid);
        }
    }
}

/// Takes one of `burst` that come again one by one, each after `interval`. `full` is when all will be there, as is the
/// answer; else it is how long the next takes to come.
pub(super) fn spend(
    full: Option<Instant>,
    now: Instant,
    interval: Duration,
    burst: u32,
) -> Result<Instant, Duration> {
    let full = full.map_or(now, |full| full.max(now)) + interval;
    let over = full.saturating_duration_since(now + interval * burst);
    if over.is_zero() { Ok(full) } else { Err(over) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    /// Of the lowest cost.
    fn hash(password: &str) -> String {
        bcrypt::hash(password, 4).unwrap()
    }

    fn users(pairs: &[(&str, &str)]) -> Users {
        let pairs = pairs.iter();
        Users::new(
            pairs
                .map(|(user, password)| ((*user).to_owned(), hash(password)))
                .collect(),
        )
    }

    fn basic(user: &str, password: &str) -> HeaderMap {
        let encoded = BASE64_STANDARD.encode(format!("{user}:{password}"));
        header(&format!("Basic {encoded}"))
    }

    fn header(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())])
    }

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(future)
    }

    #[test]
    fn who_is_let_in() {
        let authenticator = Authenticator::new().unwrap();
        let users = users(&[("alice", "right"), ("bob", "secret:with:colons")]);
        let admit = |headers: &HeaderMap| run(authenticator.admit(&users, headers, HERE));
        for _ in 0..2 {
            assert_eq!(admit(&basic("alice", "right")), Ok(()));
            assert_eq!(admit(&basic("bob", "secret:with:colons")), Ok(()));
        }
        assert_eq!(admit(&basic("alice", "wrong")), Err(Refusal::WrongPassword));
        assert_eq!(admit(&basic("alice", "")), Err(Refusal::WrongPassword));
        // Another user's, and one that is right for somebody.
        assert_eq!(
            admit(&basic("alice", "secret:with:colons")),
            Err(Refusal::WrongPassword)
        );
        assert_eq!(admit(&basic("carol", "right")), Err(Refusal::UnknownUser));
        assert_eq!(admit(&basic("", "")), Err(Refusal::UnknownUser));
        assert_eq!(admit(&HeaderMap::new()), Err(Refusal::Missing));
        for value in [
            "Basic",
            "Basic ",
            "Basic !",
            "Bearer YWxpY2U6cmlnaHQ=",
            "Basic YWxpY2U=",
            "Basic /zpyaWdodA==",
        ] {
            assert_eq!(admit(&header(value)), Err(Refusal::Malformed), "{value}");
        }
        assert_eq!(admit(&header("bAsIc YWxpY2U6cmlnaHQ=")), Ok(()));
        let mut twice = basic("alice", "right");
        twice.append(AUTHORIZATION, twice[AUTHORIZATION].clone());
        assert_eq!(admit(&twice), Err(Refusal::Malformed));
        let nobody = Users::default();
        assert_eq!(
            run(authenticator.admit(&nobody, &HeaderMap::new(), HERE)),
            Ok(())
        );
    }

    #[test]
    fn hashes_of_other_programs_are_read() {
        // The same by crypt(3)'s prefix and by htpasswd's.
        let hashes = [
            (
                "a",
                "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
                "U*U",
            ),
            (
                "y",
                "$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
                "U*U",
            ),
        ];
        let pairs = hashes.iter();
        let users = Users::new(
            pairs
                .map(|(user, hash, _)| ((*user).to_owned(), (*hash).to_owned()))
                .collect(),
        );
        let authenticator = Authenticator::new().unwrap();
        for (user, _, password) in hashes {
            let admit = |password| run(authenticator.admit(&users, &basic(user, password), HERE));
            assert_eq!(admit(password), Ok(()));
            assert_eq!(admit("U*V"), Err(Refusal::WrongPassword));
        }
    }

    #[test]
    fn a_remembered_password_ends_with_its_hash() {
        let authenticator = Authenticator::new().unwrap();
        let admit = |users: &Users, password| {
            run(authenticator.admit(users, &basic("alice", password), HERE))
        };
        assert_eq!(admit(&users(&[("alice", "old")]), "old"), Ok(()));
        let changed = users(&[("alice", "new"), ("bob", "b")]);
        assert_eq!(admit(&changed, "old"), Err(Refusal::WrongPassword));
        assert_eq!(admit(&changed, "new"), Ok(()));
        assert_eq!(authenticator.proven.lock().unwrap().len(), 1);
        let gone = users(&[("bob", "b")]);
        assert_eq!(admit(&gone, "new"), Err(Refusal::UnknownUser));
        assert_eq!(
            run(authenticator.admit(&gone, &basic("bob", "b"), HERE)),
            Ok(())
        );
        let proven = authenticator.proven.lock().unwrap();
        assert_eq!(proven.keys().collect::<Vec<_>>(), ["bob"]);
    }

    #[test]
    fn the_eleventh_wrong_one_is_not_looked_at_and_the_proven_one_is_let_in() {
        let authenticator = Authenticator::new().unwrap();
        let users = users(&[("alice", "right")]);
        let admit = |password: &str, peer| {
            run(authenticator.admit(&users, &basic("alice", password), peer))
        };
        assert_eq!(admit("right", HERE), Ok(()));
        for _ in 0..BURST {
            assert_eq!(admit("wrong", HERE), Err(Refusal::WrongPassword));
        }
        for _ in 0..100 {
            let Err(Refusal::TooMany(wait)) = admit("wrong", HERE) else {
                panic!("looked at");
            };
            assert!(wait <= REFILL, "{wait:?}");
        }
        assert_eq!(admit("right", HERE), Ok(()));
        // From elsewhere it still counts.
        let other = "192.0.2.1".parse().unwrap();
        assert_eq!(admit("wrong", other), Err(Refusal::WrongPassword));
    }

    #[test]
    fn a_right_password_costs_no_turn() {
        let authenticator = Authenticator::new().unwrap();
        for number in 0..3 * BURST {
            let password = number.to_string();
            let users = users(&[("alice", &password)]);
            let admitted = run(authenticator.admit(&users, &basic("alice", &password), HERE));
            assert_eq!(admitted, Ok(()));
        }
    }

    #[test]
    fn few_wait_for_their_hash() {
        let authenticator = Authenticator::new().unwrap();
        let users = users(&[("alice", "right")]);
        run(async {
            let turn = authenticator.turn.acquire().await.unwrap();
            let headers = basic("alice", "right");
            let peers =
                (1..=QUEUE + 2).map(|n| IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(n).unwrap())));
            let attempts = peers.map(|peer| authenticator.admit(&users, &headers, peer));
            let mut attempts: Vec<_> = attempts.map(Box::pin).collect();
            let mut last = attempts.pop().unwrap();
            for attempt in &mut attempts {
                let waits = std::future::poll_fn(|cx| {
                    std::task::Poll::Ready(attempt.as_mut().poll(cx).is_pending())
                });
                assert!(waits.await);
            }
            assert_eq!(last.as_mut().await, Err(Refusal::Busy));
            drop(turn);
            for attempt in attempts {
                assert_eq!(attempt.await, Ok(()));
            }
        });
    }

    fn is_pending<T>(future: &mut std::pin::Pin<Box<impl Future<Output = T>>>) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        future.as_mut().poll(&mut context).is_pending()
    }

    #[test]
    fn an_address_has_one_place_in_the_queue() {
        let authenticator = Authenticator::new().unwrap();
        let users = users(&[("alice", "right")]);
        run(async {
            let turn = authenticator.turn.acquire().await.unwrap();
            let (wrong, right) = (basic("alice", "wrong"), basic("alice", "right"));
            let mut first = Box::pin(authenticator.admit(&users, &wrong, HERE));
            assert!(is_pending(&mut first));
            // More than the queue has places, and more than would be counted as failures.
            for _ in 0..3 * BURST {
                let next = authenticator.admit(&users, &right, HERE).await;
                assert_eq!(next, Err(Refusal::Busy));
            }
            let other = "192.0.2.1".parse().unwrap();
            let mut second = Box::pin(authenticator.admit(&users, &right, other));
            assert!(is_pending(&mut second));
            drop(turn);
            assert_eq!(first.await, Err(Refusal::WrongPassword));
            assert_eq!(second.await, Ok(()));
            // One who leaves gives up the place.
            let turn = authenticator.turn.acquire().await.unwrap();
            for _ in 0..3 {
                let mut leaves = Box::pin(authenticator.admit(&users, &wrong, HERE));
                assert!(is_pending(&mut leaves));
            }
            drop(turn);
            assert_eq!(authenticator.queue.lock().unwrap().len(), 0);
        });
    }

    #[test]
    fn an_unknown_user_waits_for_a_hash_as_well() {
        let authenticator = Authenticator::new().unwrap();
        let users = users(&[("alice", "right")]);
        run(async {
            let turn = authenticator.turn.acquire().await.unwrap();
            let headers = basic("nobody", "right");
            let mut attempt = Box::pin(authenticator.admit(&users, &headers, HERE));
            assert!(is_pending(&mut attempt));
            drop(turn);
            assert_eq!(attempt.await, Err(Refusal::UnknownUser));
        });
    }

    #[test]
    fn turns_come_again_with_time() {
        let mut failures = Failures::default();
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(failures.take(HERE, start), Ok(()));
        }
        assert_eq!(failures.take(HERE, start), Err(Refusal::TooMany(REFILL)));
        let soon = start + REFILL / 3;
        assert_eq!(
            failures.take(HERE, soon),
            Err(Refusal::TooMany(REFILL / 3 * 2))
        );
        let later = start + REFILL;
        assert_eq!(failures.take(HERE, later), Ok(()));
        assert_eq!(failures.take(HERE, later), Err(Refusal::TooMany(REFILL)));
        failures.give_back(HERE);
        assert_eq!(failures.take(HERE, later), Ok(()));
        let much_later = later + REFILL * 100;
        for _ in 0..BURST {
            assert_eq!(failures.take(HERE, much_later), Ok(()));
        }
        assert!(failures.take(HERE, much_later).is_err());
    }

    #[test]
    fn addresses_are_forgotten_the_least_guilty_first() {
        let mut failures = Failures::default();
        let start = Instant::now();
        let address = |n: usize| IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(n).unwrap()));
        for _ in 0..BURST {
            failures.take(HERE, start).unwrap();
        }
        for n in 1..ADDRESSES {
            failures.take(address(n), start).unwrap();
        }
        for n in ADDRESSES..3 * ADDRESSES {
            failures.take(address(n), start).unwrap();
            assert_eq!(failures.0.len(), ADDRESSES);
        }
        assert!(failures.take(HERE, start).is_err());
        // All but that one have paid by then.
        failures.take(address(0), start + 2 * REFILL).unwrap();
        assert_eq!(failures.0.len(), 2);
    }

    #[test]
    fn a_host_of_ipv6_is_one_address() {
        let of = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(of("192.0.2.1"), "192.0.2.1");
        assert_eq!(of("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }

    #[test]
    fn an_unknown_user_costs_what_the_costliest_does() {
        let of = |hashes: &[String]| {
            let hashes = hashes.iter().enumerate();
            Users::new(
                hashes
                    .map(|(n, hash)| (n.to_string(), hash.clone()))
                    .collect(),
            )
            .stand_in
        };
        let six = bcrypt::hash("x", 6).unwrap();
        let stand_in = of(&[hash("x"), six, hash("y")]);
        assert_eq!(bcrypt_cost(&stand_in), Some(6));
        assert!(!bcrypt::verify("x", &stand_in).unwrap());
    }
}
