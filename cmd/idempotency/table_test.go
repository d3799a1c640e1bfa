package main

import (
	"strings"
	"testing"

	"github.com/pgidem/idempotency/internal/inspect"
)

func TestShortenedTextHasItsBeginningAndItsEnd(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		text  string
		width int
		want  string
	}{
		{"0123456789", 10, "0123456789"},
		{"0123456789", 9, "0123…6789"},
		{"0123456789", 6, "01…789"},
		{"0123456789", 1, "…"},
		{"日本語日本語", 12, "日本語日本語"},
		{"日本語日本語", 11, "日本語…本語"},
		{"日本語日本語", 8, "日…本語"},
		{"abcde\u0301fgh", 8, "abcde\u0301fgh"},
		{"abcdefge\u0301", 4, "a…ge\u0301"},
		{"abcde\u0301f", 3, "a…f"},
	} {
		got := shortened(row.text, row.width)
		if got != row.want || displayWidth(got) > row.width {
			t.Errorf("%q to %d: %q, want %q", row.text, row.width, got, row.want)
		}
	}
}

// As the terminal does not tell it.
func TestTableForAPipeIsAlignedByWhatIsSeen(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	err := columns(&b, [][]string{{"SCOPE", "KEY", "LAST"}, {"日本", "e\u0301", "x"}, {"a", "", ""}, {strings.Repeat("long", 50), "k", "y"}})
	space := func(n int) string { return strings.Repeat(" ", n) }
	want := "SCOPE" + space(197) + "KEY  LAST\n" + "日本" + space(198) + "e\u0301    x\n" + "a\n" + strings.Repeat("long", 50) + "  k    y\n"
	if err != nil || b.String() != want {
		t.Errorf("%v\n%q\nwant\n%q", err, b.String(), want)
	}
}

func TestPreparedTransactionThatHoldsAKeyIsNoProcess(t *testing.T) {
	t.Parallel()
	rec := inspect.Record{Scope: "s", ID: "i", State: inspect.InProgress, Holders: []inspect.Holder{{}}}
	text := absence(rec).Error()
	if strings.Contains(text, "pg_terminate_backend") || !strings.Contains(text, "a prepared transaction (see pg_prepared_xacts)") || !strings.Contains(text, "rollback prepared") {
		t.Error(text)
	}
}

func TestBarsOfTheHoursAreInProportion(t *testing.T) {
	t.Parallel()
	_, lines := statistic{inspect.Statistic{Arrivals: []inspect.Arrivals{{Keys: 100}, {Keys: 50}, {Keys: 3}}}}.hours()
	for i, want := range []int{40, 20, 1} {
		if bar := lines[i][2]; bar != strings.Repeat("#", want) {
			t.Errorf("bar %d: %q", i, bar)
		}
	}
}
