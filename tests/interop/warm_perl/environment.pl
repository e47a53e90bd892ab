#!/usr/bin/perl
use strict; use warnings;
# A child process sees the same, and nothing of the template's.
print map { "$_=$ENV{$_}\n" } sort keys %ENV;
print "--\n", sort `/usr/bin/env`;
$ENV{ADDED} = "by script";
delete $ENV{QUERY_STRING};
print "--\n", grep { /ADDED|QUERY|TETRAPYLON|WARM/ } sort `/usr/bin/env`;
