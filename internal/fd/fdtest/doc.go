// SPDX-License-Identifier: MIT

// Package fdtest fails a package's tests when they leak file descriptors.
package fdtest
