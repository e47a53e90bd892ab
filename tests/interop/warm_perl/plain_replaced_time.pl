#!/usr/bin/perl
# plain: replaces Perl's time
BEGIN { *CORE::GLOBAL::time = sub { 5 } }
print time, "\n";
