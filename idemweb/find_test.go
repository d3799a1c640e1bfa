package idemweb_test

import (
	"strings"
	"testing"

	"github.com/pgidem/idempotency/idemweb"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestEachStateOfAKeyIsToldInWords(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{Trace: "https://traces.example.com/trace/{trace}"})
	execute(t, pool, "customer-7", "done", "receipt")
	execute(t, pool, "customer-7", "expired", "receipt")
	expire(t, pool, "expired")
	abandon(t, pool, "customer-7", "abandoned")
	stop(t, pool, "customer-7", "ride")
	do(t, pool, "update idempotency_operations set due_at = now() + interval '1 hour'")
	hold(t, pool, "customer-7", "held")

	done := b.find("customer-7", "done")
	done.want(t, 200, "Recorded The call took effect, and a retry gets its result.", "customer-7", "Call began", "after it began", "Expires", "in 23h59m",
		"Size of the result9 B", "Fingerprint of the request", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Open the trace")
	if !strings.Contains(done.body, `href="https://traces.example.com/trace/0af7651916cd43dd8448eb211c80319c" rel="noreferrer noopener"`) {
		t.Error(done.body)
	}
	b.find("customer-7", "expired").want(t, 200, "Expired The call took effect. The retention is over: a retry would run again.", "1h0m ago")
	b.find("customer-7", "abandoned").want(t, 200, "Abandoned A function has ended its transaction itself", "Call began20", " UTC ", "if the retention is 24 h", "the next call runs again")
	b.find("customer-7", "none").want(t, 200, "No record No call with this key has taken effect, and none is in flight")
	b.find("customer-7", "held").want(t, 200, "In flight A call is at work, and has not taken effect yet.", "process ", "user ", " for ", ", since ", "select pg_terminate_backend(")
	b.find("customer-7", "ride").want(t, 200, "Unfinished A procedure has begun and not ended.", "Procedure ride", "done step create", "outcome unknown call charge",
		"Store.Complete has tried to go on with it and has failed. The next attempt is due ", "no answer from the provider", "idempotency settle 'customer-7' 'ride' 'charge' OUTCOME-AS-JSON")
}

// Until the window is over, a retry or Store.Complete makes the call again.
func TestProcedureNeedsAPersonWhenItsCallIsOlderThanTheWindow(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{})
	stop(t, pool, "s", "ride")
	for since, late := range map[string]bool{"22 hours 59 minutes": false, "23 hours 1 minute": true} {
		do(t, pool, "update idempotency_operations set progressed_at = now() - interval '"+since+"', due_at = now() - interval '1 minute'")
		key, list := b.find("s", "ride"), b.get("/unfinished")
		key.want(t, 200, "The next attempt was due ", "1m0s ago, and nobody has made it yet.")
		list.want(t, 200, "next was due 1m0s ago", "is older than 23h0m")
		if late {
			key.want(t, 200, "the call is older than 23h0m: nobody makes it again, and a person has to settle it.")
			list.want(t, 200, "needs a person ")
		} else {
			key.want(t, 200, "A retry, or Store.Complete, goes on with it.")
			if n := strings.Count(list.text(), "needs a person"); n != 1 { // in the explanation
				t.Errorf("%d times: %s", n, list.text())
			}
		}
	}
}

func TestCallOverAnExpiredRecordIsInFlight(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{})
	execute(t, pool, "s", "again", 1)
	expire(t, pool, "again")
	hold(t, pool, "s", "again")
	b.find("s", "again").want(t, 200, "In flight A call is at work", "of an earlier one, which did and has expired")
	b.find("", "again").want(t, 200, "In flight")
}

func TestKeyIsFoundInAllScopes(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{})
	do(t, pool, `insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after)
		select 'daily', 'customer-' || to_char(i, 'FM000'), '1', now(), now() + interval '1 day', now() + interval '1 day' from generate_series(1, 60) i`)
	execute(t, pool, "other", "weekly", 1)
	first := b.find("", "daily")
	first.want(t, 200, "customer-001", "customer-050", "Recorded")
	first.wantNot(t, "customer-051", "weekly")
	second := b.press(first, "More")
	second.want(t, 200, "customer-051", "customer-060")
	second.wantNot(t, "customer-050", "More")
	b.press(second, "daily").want(t, 200, "Recorded", "customer-051")
	b.find("", "dail").want(t, 200, "No record in any scope", "enter the scope, too")
}

func TestWhatIsTypedIsAnsweredOrCorrected(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{})
	execute(t, pool, "s", "i", 1)
	b.get("/key").want(t, 200, "Find a key")
	b.get("/key?scope=s&id=i").want(t, 200, "Recorded")
	b.get("/key?id=i").want(t, 200, "Recorded")
	b.find("s", "i ").want(t, 200, "No record", "begins or ends with a space")
	b.find("", " i").want(t, 200, "No record", "begins or ends with a space")
	b.find("s", "").want(t, 400, "Enter the key.")
	b.find("s", strings.Repeat("x", 256)).want(t, 400, "longer than 255 bytes")
	b.find(strings.Repeat("x", 256), "i").want(t, 400, "longer than 255 bytes")
	b.find("s", "a\x00").want(t, 400, "a NUL")
	b.find("s", "\xff").want(t, 400, "no UTF-8")
	b.post("/key", "key", "?").want(t, 400, "The form cannot be read")
	b.post("/key", "key", "?.!").want(t, 400, "The form cannot be read")
	b.post("/key", "id", "i", "after", "?").want(t, 400, "The form cannot be read")
	b.post("/key", "id", strings.Repeat("x", 20<<10)).want(t, 400, "larger than this page’s forms")
}

// hostile are texts that could do something to the page, or hide.
var hostile = []string{
	`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `' onmouseover='alert(1)`, "javascript:alert(1)", "{{.}}", "&lt;b&gt;",
	"a\u202etxt.exe", "\u2066\u2069\u200f", "a\u200bb\ufeff", "tab\tline\nreturn\rend\r\n", "\x1b[2J", `\u0000 \x00`, "אבגד", "\U000e0041",
	strings.Repeat("😀", 63) + "é", strings.Repeat("W", 255),
}

func TestHostileKeysAreShownHarmlessAndReachedFromEachList(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{Delete: always, Results: always, Trace: "https://traces.example.com/?q={origin}"})
	for _, text := range hostile {
		execute(t, pool, text, text, map[string]string{text: text})
		do(t, pool, "update idempotency_keys set origin = $1 where id = $1", text)
	}
	wantHarmless := func(where string, r reply) {
		t.Helper()
		if r.status != 200 {
			t.Errorf("%s: %d", where, r.status)
		}
		for _, bad := range []string{"<script", "<img", "onmouseover='", "\u202e", "\u2066", "\u2069", "\u200f", "\u200b", "\ufeff", "\x1b", "\r", "\U000e0041"} {
			if strings.Contains(r.body, bad) {
				t.Errorf("%s has %q: %q", where, bad, r.body)
			}
		}
	}
	wantHarmless("overview", b.get("/"))
	for _, text := range hostile {
		wantHarmless("what was typed", b.find("", text))
		wantHarmless("the records of a key", b.post("/key", "key", idemweb.HandleOf("", text)))
		wantHarmless("the keys of a scope", b.post("/scope", "of", idemweb.HandleOf(text, "")))
		one := b.post("/key", "key", idemweb.HandleOf(text, text))
		wantHarmless("the page of a key", one)
		one.want(t, 200, "Recorded")
		wantHarmless("its result", b.press(one, "Show the result"))
		asked := b.press(one, "Delete…")
		wantHarmless("the question", asked)
		deleted := b.press(asked, "Delete the record")
		wantHarmless("the deletion", deleted)
		deleted.want(t, 200, "Deleted")
	}
	b.get("/").want(t, 200, "The table has no keys.")
}

func TestKeyThatIsKeptForeverHasNoTimeOfItsClaim(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	abandon(t, pool, "s", "lost")
	do(t, pool, "update idempotency_keys set purge_after = 'infinity'")
	r := open(t, pool, idemweb.Config{}).find("s", "lost")
	r.want(t, 200, "Abandoned")
	r.wantNot(t, "Call began")
}

func TestDurationOfACallIsFromItsBeginningToItsRecord(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", 1)
	do(t, pool, "update idempotency_keys set completed_at = now() - interval '1 hour', expires_at = now() + interval '1 day', purge_after = now() + interval '1 day' - interval '3 seconds'")
	open(t, pool, idemweb.Config{}).find("s", "i").want(t, 200, "1h0m ago, 3s after it began")
}

func TestCommandThatSettlesIsQuotedForAShell(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	stop(t, pool, "it's", "ride $(x) \u202e")
	stop(t, pool, "it's", "'; echo $(x)")
	b := open(t, pool, idemweb.Config{})
	b.find("it's", "'; echo $(x)").want(t, 200, `idempotency settle 'it'\''s' ''\''; echo $(x)' 'charge' OUTCOME-AS-JSON`)
	b.post("/key", "key", idemweb.HandleOf("it's", "ride $(x) \u202e")).want(t, 200, `idempotency settle 'it'\''s' … 'charge' OUTCOME-AS-JSON`)
}
