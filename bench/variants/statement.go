package main

import (
	"regexp"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"
)

// A statement is sent with those of its arguments that its text has left: PostgreSQL
// cannot tell the type of a parameter that does not occur.
type statement struct {
	sql  string
	uses []int // places in the arguments, from 0
}

var parameter = regexp.MustCompile(`\$[0-9]+`)

// newStatement numbers the parameters of a text without gaps.
func newStatement(text string) statement {
	var st statement
	place := func(name string) int {
		n, _ := strconv.Atoi(name[1:]) // digits, as the pattern says
		return n - 1
	}
	for _, name := range parameter.FindAllString(text, -1) {
		st.uses = append(st.uses, place(name))
	}
	slices.Sort(st.uses)
	st.uses = slices.Compact(st.uses)
	st.sql = parameter.ReplaceAllStringFunc(text, func(name string) string {
		return "$" + strconv.Itoa(slices.Index(st.uses, place(name))+1)
	})
	return st
}

func (st statement) with(all []any) query {
	args := make([]any, len(st.uses))
	for i, at := range st.uses {
		args[i] = all[at]
	}
	return query{st.sql, args}
}

func (st statement) queue(batch *pgx.Batch, all []any) {
	q := st.with(all)
	batch.Queue(q.sql, q.args...)
}
