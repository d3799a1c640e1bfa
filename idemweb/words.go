package idemweb

import (
	"fmt"
	"html/template"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pgidem/idempotency/doctor"
	"github.com/pgidem/idempotency/internal/inspect"
	"github.com/pgidem/idempotency/internal/visible"
)

// words are what the templates call.
var words = template.FuncMap{
	"ago":      func(t *inspect.Instant, now inspect.Instant) string { return moment{t, now}.Ago() },
	"estimate": newEstimate,
	"plain":    inspect.Plain,
	"count":    inspect.Count,
	"size":     inspect.Size,
	"plural":   inspect.Plural,
	"about":    about,
	"at":       func(t *inspect.Instant, now inspect.Instant) moment { return moment{t, now} },
	"when":     func(t inspect.Instant, now inspect.Instant) moment { return moment{&t, now} },
	"state":    stateName,
	"tone":     func(state string) string { return tones[state] },
	"handle":   handleOf,
	"visible":  visible.Text,
	"visibly":  visibly,
	"bar":      bar,
	"span":     inspect.Span,
	"records":  func(all []inspect.Record, scopes bool) records { return records{all, scopes} },
	"seconds": func(s *inspect.Seconds) string {
		return inspect.Span(time.Duration(float64(*s) * float64(time.Second)))
	},
}

// visibly leaves a text out of a field of a form where a person would not see what it is.
func visibly(text string) string {
	if inspect.Plain(text) != text {
		return ""
	}
	return text
}

// about is a count, marked if it is an estimate.
func about(n int64, estimated bool) string {
	if estimated {
		return "about " + inspect.Count(rounded(n))
	}
	return inspect.Count(n)
}

// An estimate is a count that can be one.
type estimate struct {
	N         int64
	Estimated bool
}

func newEstimate(n int64, estimated bool) estimate {
	if estimated {
		n = rounded(n)
	}
	return estimate{n, estimated}
}

// rounded has two digits that count: an estimate has no more.
func rounded(n int64) int64 {
	unit := int64(1)
	for n/unit >= 100 {
		unit *= 10
	}
	return (n + unit/2) / unit * unit
}

// A moment is a time beside now.
type moment struct {
	at  *inspect.Instant
	now inspect.Instant
}

// Past reports whether the time has come.
func (m moment) Past() bool { return m.at.Infinite == "" && !m.at.After(m.now.Time) }

func (m moment) Known() bool { return m.at != nil }

// Exact is for programs, and empty where HTML has no form for it.
func (m moment) Exact() string {
	if m.at.Infinite != "" || m.at.Year() < 1 || m.at.Year() > 9999 {
		return ""
	}
	return m.at.UTC().Format("2006-01-02T15:04:05Z")
}

func (m moment) Text() string {
	if m.Exact() == "" {
		return m.at.String()
	}
	return m.at.UTC().Format("2006-01-02 15:04:05") + " UTC"
}

func (m moment) Ago() string {
	if m.at.Infinite != "" {
		return ""
	}
	return m.at.Relative(m.now)
}

// records are those of a table, with their scopes or all of one.
type records struct {
	Records []inspect.Record
	Scopes  bool
}

// stateName is a state as the page calls it.
func stateName(state string) string {
	switch state {
	case inspect.Done:
		return "Recorded"
	case inspect.InProgress:
		return "In flight"
	case inspect.NotFound:
		return "No record"
	}
	return strings.ToUpper(state[:1]) + state[1:]
}

// tones are the classes of the states' badges.
var tones = map[string]string{
	inspect.Done: "good", inspect.InProgress: "busy", inspect.Unfinished: "warn",
	inspect.Expired: "calm", inspect.Abandoned: "bad", inspect.NotFound: "calm",
	string(doctor.Error): "bad", string(doctor.Warning): "warn", string(doctor.Note): "calm",
}

// sentence begins with a capital letter and ends with a full stop.
func sentence(text string) string {
	r, size := utf8.DecodeRuneInString(text)
	text = string(unicode.ToUpper(r)) + text[size:]
	if strings.HasSuffix(text, ".") {
		return text
	}
	return text + "."
}

// bar is a share of the widest, in percent, and at least visible.
func bar(n, most int64) string {
	if n <= 0 || most <= 0 {
		return "0"
	}
	return fmt.Sprintf("%.1f", max(0.5, 100*float64(n)/float64(most)))
}
