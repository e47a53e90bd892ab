#!/usr/bin/perl
use strict; use warnings; use POSIX; use File::Spec;
die "at once\n";
