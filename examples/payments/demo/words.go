package demo

import (
	"strconv"
	"strings"
)

// Quoted is a word of a command line for an error, which gets into logs. Where a
// connection string, or a piece of one, can be among the words, no word is shown:
// nobody can tell the password from the rest.
func Quoted(words []string, word string) string {
	if strings.ContainsAny(strings.Join(words, " "), "@:=") {
		return "a word that is not shown, since it can be a secret"
	}
	return strconv.Quote(word)
}

// QuotedError is err, which quotes a word, under the same condition.
func QuotedError(words []string, err error) string {
	if strings.ContainsAny(strings.Join(words, " "), "@:=") {
		return "a flag is unknown, or its value is of another kind"
	}
	return err.Error()
}
