package idemweb

import (
	"fmt"
	"time"

	"github.com/pgidem/idempotency/internal/inspect"
)

// The chart of the arrivals, in units of its own. Its height is that of the columns.
const (
	chartWidth  = 720
	chartHeight = 120
	shownHours  = 24
	columnGap   = 4
)

// hours are the arrivals of the last 24 hours, those without any included.
type hours struct {
	Columns   []column
	Most      int64
	Total     int64
	Estimated bool
}

// A column is one hour.
type column struct {
	Hour          time.Time
	Keys          int64
	X, Y          int
	Width, Height int
	Label         string // below, if it has one
	LabelX        int
}

func newHours(s inspect.Statistic) hours {
	h := hours{Estimated: s.Estimated}
	at := make(map[int64]int64)
	for _, a := range s.Arrivals {
		at[a.Hour.Unix()] = a.Keys
		h.Total += a.Keys
		h.Most = max(h.Most, a.Keys)
	}
	const width = chartWidth / shownHours
	now := s.Now.Truncate(time.Hour)
	for i := range shownHours {
		c := column{Hour: now.Add(time.Duration(i-shownHours+1) * time.Hour).UTC(), X: i*width + columnGap/2, Width: width - columnGap, LabelX: i*width + width/2}
		c.Keys = at[c.Hour.Unix()]
		if c.Keys > 0 {
			c.Height = int(max(2, c.Keys*chartHeight/h.Most))
		}
		c.Y = chartHeight - c.Height
		if c.Hour.Hour()%6 == 0 {
			c.Label = c.Hour.Format("15:04")
		}
		h.Columns = append(h.Columns, c)
	}
	return h
}

// Title is what a column says to who points at it.
func (h hours) Title(c column) string {
	return fmt.Sprintf("%s UTC: %s", c.Hour.Format("15:04"), about(c.Keys, h.Estimated && c.Keys > 0))
}
