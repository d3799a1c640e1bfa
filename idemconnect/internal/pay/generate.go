// Package pay is the service of this module's tests.
package pay

// The versions of the two generators are in buf.gen.yaml.
//
//go:generate go run github.com/bufbuild/buf/cmd/buf@v1.75.0 generate
