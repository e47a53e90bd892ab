#!/usr/bin/perl
print "Status: 302 Found\nLocation: /elsewhere\n\n";
