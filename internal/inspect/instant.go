package inspect

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// An Instant is a timestamptz. One in the table can be infinite, or of a year that
// RFC 3339 has no form for: somebody may have set it to keep a record for good.
//
// Statements return it as extract(epoch from x)::text. In the modes of pgx in which
// the server answers with text, a timestamptz looks as DateStyle and TimeZone say; a
// numeric does not depend on any setting. (PostgreSQL rounds it to seconds from the
// year 294247 on.)
type Instant struct {
	time.Time        // in UTC, when it is finite
	Infinite  string // infinity or -infinity
}

func (i *Instant) Scan(src any) error {
	text, ok := src.(string)
	switch {
	case !ok:
		return fmt.Errorf("a time came as %T", src)
	case strings.HasSuffix(text, "Infinity"):
		*i = Instant{Infinite: strings.ToLower(text)}
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
	*i = Instant{Time: time.Unix(seconds, 1000*micros).UTC()}
	return nil
}

// String is to the second, which is what people want.
func (i Instant) String() string {
	i.Time = i.Truncate(time.Second)
	return i.Exact()
}

// Exact is RFC 3339 with the years that this has no form for as PostgreSQL shows
// them in JSON: more than four digits, and BC.
func (i Instant) Exact() string {
	switch year := i.Year(); {
	case i.Infinite != "":
		return i.Infinite
	case year <= 0: // there is no year 0: before 1 AD comes 1 BC
		return fmt.Sprintf("%04d", 1-year) + i.Format("-01-02T15:04:05.999999Z") + " BC"
	default:
		return i.Format("2006-01-02T15:04:05.999999Z")
	}
}

func (i Instant) MarshalJSON() ([]byte, error) { return json.Marshal(i.Exact()) }

// Relative is how far i is from now.
func (i Instant) Relative(now Instant) string {
	if i.Infinite != "" {
		return i.Infinite
	}
	return Relative(i.Time, now.Time)
}

// In is the whole sentence.
func (i Instant) In(now Instant) string {
	if i.Infinite != "" {
		return i.Infinite
	}
	return i.String() + " (" + i.Relative(now) + ")"
}

// Plus is i + to - from, exactly: time.Duration ends at 292 years. It is nil if
// one of them is infinite.
func (i Instant) Plus(to, from Instant) *Instant {
	if i.Infinite+to.Infinite+from.Infinite != "" {
		return nil
	}
	sum := time.Unix(i.Unix()+to.Unix()-from.Unix(), int64(i.Nanosecond()+to.Nanosecond()-from.Nanosecond()))
	return &Instant{Time: sum.UTC()}
}
