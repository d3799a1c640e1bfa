package idemweb

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/inspect"
	"github.com/pgidem/idempotency/internal/visible"
)

const (
	// findPage is how many records of one key, in different scopes, are shown at a time.
	findPage = 50

	// shownResult is how much of a result is shown, in bytes.
	shownResult = 64 << 10

	// maxKey is the longest text that can be a scope or a key, in bytes.
	maxKey = 255
)

// A search is the form and what it has found.
type search struct {
	Scope, ID string
	Problem   string // with what was typed
	Spaces    bool   // at one of the ends of what was typed

	Records []inspect.Record
	Next    string // where to go on
	Asked   bool
}

// A card is one key, whatever became of it.
type card struct {
	inspect.Record
	Standby bool
	Typed   bool // not come to from a list
	Spaces  bool

	Window   time.Duration // in which a call of a procedure is made again
	TraceURL string
	Deletes  bool
	Results  bool // may be asked for
	Text     string
	CutOff   bool
	Shown    bool
}

// findKey answers what was typed, or a handle of a list.
func findKey(r *request) (answer, error) {
	scope, id, typed := r.form.Get("scope"), r.form.Get("id"), true
	if r.form.Has("key") {
		var ok bool
		if scope, id, ok = readHandle(r.form.Get("key")); !ok {
			return failure(http.StatusBadRequest, "The form cannot be read", "It has no key. Go back, and reload the list."), nil
		}
		typed = false
	}
	s := search{Scope: scope, ID: id, Spaces: typed && (spaced(scope) || spaced(id))}
	switch {
	case scope == "" && id == "":
		return answer{template: "find", title: "Find a key", data: s}, nil
	case id == "":
		s.Problem = "Enter the key. To see all keys of the scope, use “A scope’s keys”."
	default:
		s.Problem = problemOf(scope, id)
	}
	if s.Problem != "" {
		return answer{template: "find", title: "Find a key", status: http.StatusBadRequest, data: s}, nil
	}
	if scope == "" {
		return r.findAll(s)
	}
	c, err := r.findOne(scope, id)
	c.Typed, c.Spaces = typed, s.Spaces
	return answer{template: "key", title: "One key: " + stateName(c.State), data: c}, err
}

func spaced(text string) bool { return text != strings.TrimSpace(text) }

// problemOf says why a text cannot be a scope or a key.
func problemOf(texts ...string) string {
	for _, text := range texts {
		switch {
		case len(text) > maxKey:
			return "No scope or key is longer than 255 bytes."
		case !utf8.ValidString(text) || strings.ContainsRune(text, 0):
			return "No scope or key has such a character: it is no UTF-8, or a NUL."
		}
	}
	return ""
}

func (r *request) findAll(s search) (answer, error) {
	after, err := inspect.ReadCursor(r.form.Get("after"))
	if err != nil {
		return failure(http.StatusBadRequest, "The form cannot be read", "It has no place to go on from. Search again."), nil
	}
	s.Asked = true
	err = r.look(func(ctx context.Context, tx pgx.Tx, t *inspect.Table) error {
		found, more, err := t.FindAll(ctx, tx, s.ID, after, findPage)
		if s.Records = found; more {
			s.Next = found[len(found)-1].Place().String()
		}
		return err
	})
	return answer{template: "find", title: "Find a key", data: s}, err
}

func (r *request) findOne(scope, id string) (c card, err error) {
	c = card{Window: r.store.Config().CallWindow, Record: inspect.Record{Scope: scope, ID: id, State: inspect.NotFound}, Results: r.maySee(r.Request), Deletes: r.mayDelete(r.Request)}
	c.Shown = c.Results && r.Method == http.MethodPost && r.form.Get("show") == "result"
	most := 0
	if c.Shown {
		most = shownResult
	}
	err = r.look(func(ctx context.Context, tx pgx.Tx, t *inspect.Table) (err error) {
		c.Record, c.Standby, err = t.Find(ctx, tx, scope, id, most)
		return err
	})
	c.TraceURL = traceURL(r.cfg.Trace, c.Origin)
	c.CutOff = c.Record.CutOff()
	c.Text = shown(c.Result, c.CutOff)
	return c, err
}

// shown is a result for people; one that is cut off is no JSON.
func shown(result []byte, cutOff bool) string {
	text := string(result)
	var b bytes.Buffer
	if !cutOff && json.Indent(&b, result, "", "  ") == nil {
		text = b.String()
	}
	lines := strings.Split(strings.ToValidUTF8(text, ""), "\n")
	for i, line := range lines {
		lines[i] = visible.Text(line)
	}
	return strings.Join(lines, "\n")
}

// Deletable reports whether Store.Delete deletes it.
func (c card) Deletable() bool {
	return c.State == inspect.Done || c.State == inspect.Expired || c.State == inspect.Abandoned
}

// HasResult reports whether there is a result that the database's role may read.
func (c card) HasResult() bool { return c.CompletedAt != nil && c.ResultBytes != nil }

// Duration is how long the call that was recorded took.
func (c card) Duration() string {
	if c.CreatedAt == nil || c.CompletedAt == nil || c.CompletedAt.Infinite != "" || c.CompletedAt.Before(c.CreatedAt.Time) {
		return ""
	}
	return inspect.Span(c.CompletedAt.Sub(c.CreatedAt.Time))
}

// Claimed is when a row without a result was claimed with the default retention, which it
// does not know.
func (c card) Claimed() *moment {
	if c.PurgeAfter == nil || c.PurgeAfter.Infinite != "" {
		return nil
	}
	return &moment{&inspect.Instant{Time: c.PurgeAfter.Add(-inspect.DefaultRetention)}, c.Now}
}

// Late reports whether the procedure waits for a person.
func (c card) Late() bool { return late(c.Record, c.Now, c.Window) }

// late: the outcome of a call is not known, and nobody makes it again.
func late(rec inspect.Record, now inspect.Instant, window time.Duration) bool {
	return rec.Operation != nil && strings.HasPrefix(rec.Operation.Begun, "call ") && now.Sub(rec.Operation.ProgressedAt.Time) > window
}

// Example is the command that enters the outcome of the call that is not known.
func (c card) Example() string {
	call, isCall := strings.CutPrefix(c.Operation.Begun, "call ")
	if !isCall {
		return ""
	}
	return "idempotency settle " + strings.Join([]string{quoted(c.Scope), quoted(c.ID), quoted(call), "OUTCOME-AS-JSON"}, " ")
}

// quoted is an argument for a shell, if it can be shown as it is; else a word for it.
func quoted(text string) string {
	if inspect.Plain(text) != text {
		return "…"
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
