package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// An instant is a timestamptz. One in the table can be infinite, or of a year that
// RFC 3339 has no form for: somebody may have set it to keep a record for good.
//
// Statements return it as extract(epoch from x)::text. In the modes of pgx in which
// the server answers with text, a timestamptz looks as DateStyle and TimeZone say; a
// numeric does not depend on any setting. (PostgreSQL rounds it to seconds from the
// year 294247 on.)
type instant struct {
	time.Time        // in UTC, when it is finite
	infinite  string // infinity or -infinity
}

func (i *instant) Scan(src any) error {
	text, ok := src.(string)
	switch {
	case !ok:
		return fmt.Errorf("a time came as %T", src)
	case strings.HasSuffix(text, "Infinity"):
		*i = instant{infinite: strings.ToLower(text)}
		return nil
	}
	whole, fraction, _ := strings.Cut(text, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return err
	}
	micros, err := strconv.ParseInt((fraction + "000000")[:6], 10, 64)
	if err != nil {
		return err
	}
	if strings.HasPrefix(whole, "-") {
		micros = -micros
	}
	*i = instant{Time: time.Unix(seconds, 1000*micros).UTC()}
	return nil
}

// String is to the second, which is what people want.
func (i instant) String() string {
	i.Time = i.Truncate(time.Second)
	return i.exact()
}

// exact is RFC 3339 with the years that this has no form for as PostgreSQL shows
// them in JSON: more than four digits, and BC.
func (i instant) exact() string {
	switch year := i.Year(); {
	case i.infinite != "":
		return i.infinite
	case year <= 0: // there is no year 0: before 1 AD comes 1 BC
		return fmt.Sprintf("%04d", 1-year) + i.Format("-01-02T15:04:05.999999Z") + " BC"
	default:
		return i.Format("2006-01-02T15:04:05.999999Z")
	}
}

func (i instant) MarshalJSON() ([]byte, error) { return json.Marshal(i.exact()) }

// relative is how far i is from now.
func (i instant) relative(now instant) string {
	if i.infinite != "" {
		return i.infinite
	}
	return relative(i.Time, now.Time)
}

// in is the whole sentence.
func (i instant) in(now instant) string {
	if i.infinite != "" {
		return i.infinite
	}
	return i.String() + " (" + i.relative(now) + ")"
}

// plus is i + to - from, exactly: time.Duration ends at 292 years. It is nil if
// one of them is infinite.
func (i instant) plus(to, from instant) *instant {
	if i.infinite+to.infinite+from.infinite != "" {
		return nil
	}
	sum := time.Unix(i.Unix()+to.Unix()-from.Unix(), int64(i.Nanosecond()+to.Nanosecond()-from.Nanosecond()))
	return &instant{Time: sum.UTC()}
}
